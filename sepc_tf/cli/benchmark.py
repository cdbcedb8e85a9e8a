"""Measures speed and memory: of operations, of training input, of whole detectors.

sepc-tf benchmark deform-conv --json deform_conv.json
sepc-tf benchmark label-assignment
sepc-tf benchmark input --data data/coco/annotations/instances_val2017.json data/coco/val2017
sepc-tf benchmark roi-align
sepc-tf benchmark detector --config retinanet_r50_baseline_1x retinanet_r50_sepc_lite_1x
sepc-tf benchmark detector --table --image-size 320x416 --batch 2 --warmup 2 --repeats 10
sepc-tf benchmark export --run-dir runs/demo --formats saved_model onnx litert
sepc-tf benchmark training --config demo_baseline demo_sepc_lite --batch 8 --image-size 288x288
"""

import tempfile
from pathlib import Path

from sepc_tf.cli.numbers import height_width, whole_number
from sepc_tf.errors import UserError
from sepc_tf.files import check_writable, write_json

# What is measured -> which options it has besides --repeats and --json.
OPTIONS = {
    "deform-conv": ("batch", "map", "times_only"),
    "label-assignment": ("objects",),
    "input": ("data", "images", "workers"),
    "roi-align": (),
    "detector": ("config", "table", "batch", "warmup", "image_size", "overrides"),
    "export": (
        "run_dir",
        "formats",
        "precisions",
        "images",
        "times_only",
        "image_size",
        "picture",
        "overrides",
    ),
    "training": ("config", "batch", "image_size", "times_only", "memory", "overrides"),
}


def add_arguments(parser):
    parser.add_argument("what", choices=[*OPTIONS])
    parser.add_argument(
        "--repeats", type=whole_number(1), help="default 15, of detector 200 as in the paper"
    )
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument(
        "--batch",
        type=whole_number(1),
        nargs="+",
        help="of deform-conv, default 1 4; of detector, default 8; of training, default 4",
    )
    parser.add_argument(
        "--map", nargs="+", help="of deform-conv: P4, P5, P6, P7 or 'P3, stride 2'; default all"
    )
    parser.add_argument("--times-only", action="store_true", help="no memory, no AP, no profile")
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
        "--images", type=whole_number(1), help="images of a round; default 256, of export 8"
    )
    parser.add_argument(
        "--workers", type=whole_number(1), help="of input: images at a time; default all cores"
    )
    parser.add_argument(
        "--config", nargs="+", help="of detector, training: times are compared with the first's"
    )
    parser.add_argument(
        "--table", action="store_true", help="of detector: every row of the paper's Table 1"
    )
    parser.add_argument(
        "--memory", action="store_true", help="of training: the most that a process holds, too"
    )
    parser.add_argument(
        "--warmup", type=whole_number(1), help="of detector: calls before the timing; default 100"
    )
    parser.add_argument(
        "--image-size",
        type=height_width,
        metavar="HxW",
        help="of detector: sides that images are resized to at most (default: the config's); of "
        "export: as of sepc-tf export; of training: padded images, default 256x320",
    )
    parser.add_argument("--run-dir", type=Path, help="of export: what is exported")
    parser.add_argument("--formats", nargs="+", help="of export: as of sepc-tf export; default all")
    parser.add_argument(
        "--precisions",
        nargs="+",
        help="of export: those that a format has of these; default all "
        "but bfloat16, which not every processor has",
    )
    parser.add_argument("--picture", type=Path, help="of export: draw AP over time, FILE.png")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of detector, export, training: settings"
    )


def run(arguments):
    import tensorflow as tf

    allowed = OPTIONS[arguments.what]
    for name in {name for names in OPTIONS.values() for name in names}.difference(allowed):
        if getattr(arguments, name):
            option = arguments.overrides[0] if name == "overrides" else f"--{_dashed(name)}"
            raise UserError(f"{option} does not apply to benchmark {arguments.what}; leave it out")
    if arguments.json:
        check_writable(arguments.json.parent)
    tf.get_logger().setLevel("ERROR")  # it warns of one traced function per form, which is meant
    report, table = MEASUREMENTS[arguments.what](arguments)
    print(table)
    if arguments.json:
        write_json(arguments.json, report, indent=1)


def _dashed(name):
    return name.replace("_", "-")


def _deform_conv(arguments):
    from sepc_tf import benchmark

    report = benchmark.deform_conv(
        tuple(arguments.batch or (1, 4)),
        [case for case in benchmark.MAPS if not arguments.map or case[0] in arguments.map],
        **_given(repeats=arguments.repeats),
        memory=not arguments.times_only,
        neck=not arguments.times_only,
    )
    return report, benchmark.markdown(report)


def _label_assignment(arguments):
    from sepc_tf import benchmark

    counts = arguments.objects and tuple(arguments.objects)
    report = benchmark.label_assignment(**_given(counts=counts, repeats=arguments.repeats))
    return report, benchmark.assignment_markdown(report)


def _input(arguments):
    from sepc_tf import benchmark

    if not arguments.data:
        raise UserError("benchmark input needs --data JSON FOLDER, a COCO file and its images")
    options = _given(num_images=arguments.images, num_parallel=arguments.workers)
    report = benchmark.input_speed(*arguments.data, rounds=arguments.repeats or 15, **options)
    return report, benchmark.input_markdown(report)


def _roi_align(arguments):
    from sepc_tf import benchmark

    report = benchmark.roi_align(**_given(repeats=arguments.repeats))
    return report, benchmark.roi_align_markdown(report)


def _detector(arguments):
    from sepc_tf import benchmark
    from sepc_tf.config import load_config

    if bool(arguments.config) == arguments.table:
        raise UserError("benchmark detector needs --config NAME..., or --table")
    batch = _single("batch", arguments.batch)
    overrides = [*arguments.overrides]
    if arguments.image_size:
        short, long = sorted(arguments.image_size)
        overrides += [f"data.test_short_side={short}", f"data.long_side={long}"]
    names = benchmark.table_1() if arguments.table else [arguments.config]
    groups = [{name: load_config(name, overrides) for name in group} for group in names]
    options = _given(batch=batch, warmup=arguments.warmup, repeats=arguments.repeats)
    report = benchmark.detector_speed(groups, **options)
    return report, benchmark.detector_markdown(report)


def _export(arguments):
    from sepc_tf import benchmark
    from sepc_tf.data.sources import load_split
    from sepc_tf.export import FORMATS, export, precisions
    from sepc_tf.runs import load_run

    if not arguments.run_dir:
        raise UserError("benchmark export needs --run-dir DIR")
    if arguments.picture and arguments.times_only:
        raise UserError("--picture shows AP, which --times-only leaves out")
    if arguments.picture:
        check_writable(arguments.picture.parent)
    wanted = [
        (format, precision)
        for format in arguments.formats or FORMATS
        for precision in precisions(format)
        if (precision in arguments.precisions if arguments.precisions else precision != "bfloat16")
    ]
    if not wanted:
        raise UserError(
            f"--precisions: no format has {' or '.join(arguments.precisions)}; expected float32, "
            "float16, bfloat16 or int8"
        )
    run = load_run(arguments.run_dir, "best", arguments.overrides)
    dataset = load_split(run.config.data, "val")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for format, precision in wanted:
            size = None if format == "saved_model" else arguments.image_size
            place = Path(folder) / f"{format}_{precision}"
            files.append((format, precision, export(run, place, format, precision, size)))
        options = _given(num_images=arguments.images, repeats=arguments.repeats)
        report = benchmark.exported_speed(
            files, dataset, evaluate=not arguments.times_only, **options
        )
    if arguments.picture:
        benchmark.draw_exported(report, arguments.picture)
    return report, benchmark.exported_markdown(report)


def _training(arguments):
    from sepc_tf import benchmark

    if not arguments.config:
        raise UserError("benchmark training needs --config NAME...")
    options = _given(
        batch=_single("batch", arguments.batch),
        image_size=arguments.image_size,
        repeats=arguments.repeats,
    )
    report = benchmark.training_speed(
        arguments.config,
        arguments.overrides,
        profile=not arguments.times_only,
        memory=arguments.memory,
        **options,
    )
    return report, benchmark.training_markdown(report)


# Each returns the numbers and a text.
MEASUREMENTS = {
    "deform-conv": _deform_conv,
    "label-assignment": _label_assignment,
    "input": _input,
    "roi-align": _roi_align,
    "detector": _detector,
    "export": _export,
    "training": _training,
}


def _single(name, values):
    if values and len(values) > 1:
        raise UserError(f"--{name}: expected one number, got {' '.join(map(str, values))}")
    return values and values[0]


def _given(**options):
    """Those that are set; the rest have their defaults."""
    return {name: value for name, value in options.items() if value}
