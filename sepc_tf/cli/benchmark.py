"""Measures speed and memory: deformable convolution, label assignment, training input, RoIAlign.

sepc-tf benchmark deform-conv --json deform_conv.json
sepc-tf benchmark label-assignment
sepc-tf benchmark input --data data/coco/annotations/instances_val2017.json data/coco/val2017
sepc-tf benchmark roi-align
"""

from pathlib import Path

from sepc_tf.cli.numbers import whole_number
from sepc_tf.errors import UserError
from sepc_tf.files import check_writable, write_json

OF_INPUT = ("data", "images", "workers")


def add_arguments(parser):
    parser.add_argument("what", choices=["deform-conv", "label-assignment", "input", "roi-align"])
    parser.add_argument("--repeats", type=whole_number(1), default=15)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument(
        "--batch", type=whole_number(1), nargs="+", help="of deform-conv; default 1 4"
    )
    parser.add_argument(
        "--map", nargs="+", help="of deform-conv: P4, P5, P6, P7 or 'P3, stride 2'; default all"
    )
    parser.add_argument(
        "--times-only", action="store_true", help="of deform-conv: no memory, no whole neck"
    )
    parser.add_argument(
        "--objects",
        type=whole_number(1),
        nargs="+",
        help="of label-assignment; default 8 32 128 256 512",
    )
    parser.add_argument(
        "--data", nargs=2, metavar=("JSON", "FOLDER"), help="of input: COCO annotations, JPEG files"
    )
    parser.add_argument(
        "--images", type=whole_number(1), help="of input: images a round; default 256"
    )
    parser.add_argument(
        "--workers", type=whole_number(1), help="of input: images at a time; default all cores"
    )


def run(arguments):
    import tensorflow as tf

    from sepc_tf import benchmark

    if arguments.json:
        check_writable(arguments.json.parent)
    tf.get_logger().setLevel("ERROR")  # it warns of one traced function per form, which is meant
    if arguments.what == "deform-conv":
        _refuse(arguments, "objects", *OF_INPUT)
        report = benchmark.deform_conv(
            tuple(arguments.batch or (1, 4)),
            [case for case in benchmark.MAPS if not arguments.map or case[0] in arguments.map],
            arguments.repeats,
            memory=not arguments.times_only,
            neck=not arguments.times_only,
        )
        print(benchmark.markdown(report))
    elif arguments.what == "input":
        _refuse(arguments, "batch", "map", "times_only", "objects")
        if not arguments.data:
            raise UserError("benchmark input needs --data JSON FOLDER, a COCO file and its images")
        options = {"num_images": arguments.images, "num_parallel": arguments.workers}
        report = benchmark.input_speed(
            *arguments.data,
            rounds=arguments.repeats,
            **{name: value for name, value in options.items() if value},
        )
        print(benchmark.input_markdown(report))
    elif arguments.what == "roi-align":
        _refuse(arguments, "batch", "map", "times_only", "objects", *OF_INPUT)
        report = benchmark.roi_align(arguments.repeats)
        print(benchmark.roi_align_markdown(report))
    else:
        _refuse(arguments, "batch", "map", "times_only", *OF_INPUT)
        objects = tuple(arguments.objects or (8, 32, 128, 256, 512))
        report = benchmark.label_assignment(objects, repeats=arguments.repeats)
        print(benchmark.assignment_markdown(report))
    if arguments.json:
        write_json(arguments.json, report, indent=1)


def _refuse(arguments, *names):
    for name in names:
        if getattr(arguments, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} does not apply to benchmark {arguments.what}; leave it out")
