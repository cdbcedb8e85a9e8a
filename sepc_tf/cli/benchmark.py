"""Measures speed and memory: deformable convolution, assignment, input, RoIAlign, training steps.

sepc-tf benchmark deform-conv --json deform_conv.json
sepc-tf benchmark label-assignment
sepc-tf benchmark input --data data/coco/annotations/instances_val2017.json data/coco/val2017
sepc-tf benchmark roi-align
sepc-tf benchmark training-step --config faster_rcnn_r50_fpn_1x --size 320 480
"""

from pathlib import Path

from sepc_tf.cli.numbers import whole_number
from sepc_tf.errors import UserError
from sepc_tf.files import check_writable, write_json

WHAT = ("deform-conv", "label-assignment", "input", "roi-align", "training-step")
OF_INPUT = ("data", "images", "workers")
OF_STEP = ("config", "size", "set")


def add_arguments(parser):
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--repeats", type=whole_number(1), default=15)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument(
        "--batch",
        type=whole_number(1),
        nargs="+",
        help="of deform-conv, default 1 4; of training-step, default 1",
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
    parser.add_argument("--config", nargs="+", help="of training-step: one or more, in turn")
    parser.add_argument(
        "--size",
        type=whole_number(1),
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of training-step: padded images; default 800 1344",
    )
    parser.add_argument(
        "--set", nargs="+", metavar="KEY=VALUE", help="of training-step: settings of each config"
    )


def run(arguments):
    import tensorflow as tf

    from sepc_tf import benchmark

    if arguments.json:
        check_writable(arguments.json.parent)
    tf.get_logger().setLevel("ERROR")  # it warns of one traced function per form, which is meant
    if arguments.what == "deform-conv":
        _refuse(arguments, "objects", *OF_INPUT, *OF_STEP)
        report = benchmark.deform_conv(
            tuple(arguments.batch or (1, 4)),
            [case for case in benchmark.MAPS if not arguments.map or case[0] in arguments.map],
            arguments.repeats,
            memory=not arguments.times_only,
            neck=not arguments.times_only,
        )
        print(benchmark.markdown(report))
    elif arguments.what == "input":
        _refuse(arguments, "batch", "map", "times_only", "objects", *OF_STEP)
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
        _refuse(arguments, "batch", "map", "times_only", "objects", *OF_INPUT, *OF_STEP)
        report = benchmark.roi_align(arguments.repeats)
        print(benchmark.roi_align_markdown(report))
    elif arguments.what == "training-step":
        _refuse(arguments, "map", "times_only", "objects", *OF_INPUT)
        if not arguments.config:
            raise UserError("benchmark training-step needs --config, as retinanet_r50_baseline_1x")
        batches = arguments.batch or [1]
        if len(batches) > 1:
            raise UserError("benchmark training-step takes one --batch")
        size = tuple(arguments.size or (800, 1344))
        report = benchmark.training_step(
            arguments.config, arguments.set or [], size, *batches, arguments.repeats
        )
        print(benchmark.training_step_markdown(report))
    else:
        _refuse(arguments, "batch", "map", "times_only", *OF_INPUT, *OF_STEP)
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
