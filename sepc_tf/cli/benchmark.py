"""Measures speed and memory of the deformable convolution against the ordinary one.

sepc-tf benchmark deform-conv --json deform_conv.json
"""

import json
from pathlib import Path


def add_arguments(parser):
    parser.add_argument("what", choices=["deform-conv"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--map", nargs="+", help="P4, P5, P6, P7 or 'P3, stride 2'; default all")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--times-only", action="store_true", help="no memory, no whole neck")
    parser.add_argument("--json", type=Path, help="write the numbers there too")


def run(arguments):
    import tensorflow as tf

    from sepc_tf import benchmark

    tf.get_logger().setLevel("ERROR")  # it warns of one traced function per form, which is meant
    report = benchmark.deform_conv(
        tuple(arguments.batch),
        [case for case in benchmark.MAPS if not arguments.map or case[0] in arguments.map],
        arguments.repeats,
        memory=not arguments.times_only,
        neck=not arguments.times_only,
    )
    print(benchmark.markdown(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
