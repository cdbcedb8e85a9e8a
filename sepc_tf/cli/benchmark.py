"""Measures speed and memory.

sepc-tf benchmark deform-conv --json deform_conv.json
sepc-tf benchmark label-assignment --objects 8 256
"""

import json
from pathlib import Path

DEFORM_CONV, LABELS = "deform-conv", "label-assignment"


def add_arguments(parser):
    parser.add_argument(
        "what",
        choices=[DEFORM_CONV, LABELS],
        help="the deformable convolution against the ordinary one; what deciding which anchor "
        "learns what takes",
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    of_convolution = parser.add_argument_group(DEFORM_CONV)
    of_convolution.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    of_convolution.add_argument(
        "--map", nargs="+", help="P4, P5, P6, P7 or 'P3, stride 2'; default all"
    )
    of_convolution.add_argument(
        "--times-only", action="store_true", help="no memory, no whole neck"
    )
    of_labels = parser.add_argument_group(LABELS)
    of_labels.add_argument("--objects", type=int, nargs="+", default=[8, 32, 128, 256, 512])


def run(arguments):
    import tensorflow as tf

    from sepc_tf import benchmark

    tf.get_logger().setLevel("ERROR")  # it warns of one traced function per form, which is meant
    if arguments.what == LABELS:
        report = benchmark.label_assignment(tuple(arguments.objects), repeats=arguments.repeats)
        print(benchmark.assignment_markdown(report))
    else:
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
