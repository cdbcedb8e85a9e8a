"""Exports a run: a SavedModel that takes uint8 images of any size, or another runtime's file.

sepc-tf export --run-dir runs/demo --out runs/demo/saved_model
sepc-tf export --run-dir runs/demo --format onnx --out demo.onnx
sepc-tf export --run-dir runs/demo --format litert --precision float16 --out demo.tflite
sepc-tf export --run-dir runs/demo --format openvino --out demo.xml
"""

from pathlib import Path

from sepc_tf.cli.numbers import height_width


def add_arguments(parser):
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--checkpoint", default="best", help="best, last, or a checkpoint's path")
    parser.add_argument(
        "--format",
        default="saved_model",
        choices=("saved_model", "litert", "onnx", "openvino"),
        help="default: %(default)s; the others need the package's extra of that name",
    )
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "float16", "bfloat16", "int8")
    )
    parser.add_argument(
        "--image-size",
        type=height_width,
        metavar="HxW",
        help="input of a format with a fixed one, pixels (default: what holds the validation "
        "images)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder, or file of the format")


def run(arguments):
    from sepc_tf.export import export
    from sepc_tf.runs import load_run

    run = load_run(arguments.run_dir, arguments.checkpoint)
    options = (arguments.format, arguments.precision, arguments.image_size)
    path = export(run, arguments.out, *options)
    name = "SavedModel" if arguments.format == "saved_model" else arguments.format
    print(f"{name}: {path}")
