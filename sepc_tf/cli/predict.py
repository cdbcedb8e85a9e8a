"""Draws the predictions for images and writes them as JSON.

sepc-tf predict --run-dir runs/demo --out predictions photos/ image.jpg
sepc-tf predict --model demo digits.jpg
sepc-tf predict --model served.onnx --out predictions photos/
"""

from pathlib import Path

from sepc_tf.cli.numbers import fraction, whole_number
from sepc_tf.errors import UserError


def add_arguments(parser):
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run-dir", type=Path, help="of a training")
    model.add_argument(
        "--model",
        help="what sepc-tf export wrote, of any format; demo: a small detector of handwritten "
        "digits, included",
    )
    parser.add_argument("--checkpoint", help="of the run: best (default), last, or a path")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder for pictures and JSON"
    )
    parser.add_argument("--min-score", type=fraction, default=0.3, help="draw from this score on")
    parser.add_argument(
        "--one-per-object",
        action="store_true",
        help="draw the best of the boxes that overlap by half or more, whatever their classes "
        "(the JSON has them all)",
    )
    parser.add_argument("--limit", type=whole_number(1), help="at most so many images")
    parser.add_argument("paths", nargs="+", type=Path, help="images or folders")


def run(arguments):
    from sepc_tf.exported import ExportedModel
    from sepc_tf.predict import list_images, predict_files
    from sepc_tf.runs import load_run, packaged_run

    if arguments.model and arguments.checkpoint:
        raise UserError("--checkpoint is one of --run-dir; --model has no others to choose from")
    list_images(arguments.paths)  # a missing path is an error before the model is built
    if arguments.run_dir:
        model = load_run(arguments.run_dir, arguments.checkpoint or "best")
    elif arguments.model == "demo":
        model = load_run(packaged_run("demo"))
    else:
        model = ExportedModel(arguments.model)
    found, failed = predict_files(
        model,
        arguments.paths,
        arguments.out,
        arguments.min_score,
        arguments.limit,
        arguments.one_per_object,
    )
    print(f"{len(found)} images predicted, {len(failed)} unreadable: {arguments.out}")
    return 1 if failed and not found else 0
