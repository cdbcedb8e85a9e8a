"""Draws where SEPC's convolutions read an image, for an object in two sizes of the image.

  sepc-tf analyze offsets --model demo --image digits.jpg
  sepc-tf analyze offsets --run-dir runs/sepc --image photo.jpg --object 2

Each time the cell is taken that gives the object's class the highest score. Writes offsets.png and
offsets.json.
"""

from pathlib import Path

from sepc_tf.cli.numbers import whole_number
from sepc_tf.errors import UserError


def add_arguments(parser):
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run-dir", type=Path, help="of a training with the head sepc_lite or sepc")
    model.add_argument("--model", choices=["demo"], help="the packaged detector of digits")
    parser.add_argument("--checkpoint", help="of the run: best (default), last, or a path")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--zoom", type=float, default=2.0, help="of the second size over the first (default 2)"
    )
    parser.add_argument(
        "--object", type=whole_number(1), metavar="N", help="1: the best detection; default: chosen"
    )
    parser.add_argument("--out", type=Path, help="default: RUN_DIR/analysis, or analysis")


def run(arguments):
    from sepc_tf.analysis.offsets import analyze_offsets
    from sepc_tf.data.images import read_image
    from sepc_tf.files import check_writable
    from sepc_tf.runs import load_run, packaged_run

    if arguments.model and arguments.checkpoint:
        raise UserError("--checkpoint is one of --run-dir; --model has no others to choose from")
    if not 0.25 <= arguments.zoom <= 8:
        raise UserError(f"--zoom: expected a number within 0.25..8, got {arguments.zoom:g}")
    read_image(arguments.image)  # a missing file is an error before the model is built
    run_dir = arguments.run_dir or packaged_run(arguments.model)
    out_dir = arguments.out or (arguments.run_dir or Path()) / "analysis"
    check_writable(out_dir)
    found = load_run(run_dir, arguments.checkpoint or "best")
    analyze_offsets(found, arguments.image, out_dir, arguments.zoom, arguments.object)
    print(f"{out_dir / 'offsets.png'} and offsets.json")
