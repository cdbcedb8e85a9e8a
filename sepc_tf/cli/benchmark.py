"""Measures speed and memory: the deformable convolution, label assignment, RoIAlign.

sepc-tf benchmark deform-conv --json deform_conv.json
sepc-tf benchmark label-assignment
sepc-tf benchmark roi-align
"""

import json
from pathlib import Path

from sepc_tf.errors import UserError


def add_arguments(parser):
    parser.add_argument("what", choices=["deform-conv", "label-assignment", "roi-align"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("--batch", type=int, nargs="+", help="of deform-conv; default 1 4")
    parser.add_argument(
        "--map", nargs="+", help="of deform-conv: P4, P5, P6, P7 or 'P3, stride 2'; default all"
    )
    parser.add_argument(
        "--times-only", action="store_true", help="of deform-conv: no memory, no whole neck"
    )
    parser.add_argument(
        "--objects", type=int, nargs="+", help="of label-assignment; default 8 32 128 256 512"
    )


def run(arguments):
    import tensorflow as tf

    from sepc_tf import benchmark

    tf.get_logger().setLevel("ERROR")  # it warns of one traced function per form, which is meant
    if arguments.what == "deform-conv":
        _refuse(arguments, "objects")
        report = benchmark.deform_conv(
            tuple(arguments.batch or (1, 4)),
            [case for case in benchmark.MAPS if not arguments.map or case[0] in arguments.map],
            arguments.repeats,
            memory=not arguments.times_only,
            neck=not arguments.times_only,
        )
        print(benchmark.markdown(report))
    elif arguments.what == "roi-align":
        _refuse(arguments, "batch", "map", "times_only", "objects")
        report = benchmark.roi_align(arguments.repeats)
        print(benchmark.roi_align_markdown(report))
    else:
        _refuse(arguments, "batch", "map", "times_only")
        objects = tuple(arguments.objects or (8, 32, 128, 256, 512))
        report = benchmark.label_assignment(objects, repeats=arguments.repeats)
        print(benchmark.assignment_markdown(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _refuse(arguments, *names):
    for name in names:
        if getattr(arguments, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} does not apply to benchmark {arguments.what}; leave it out")
