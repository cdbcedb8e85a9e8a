"""Draws the predictions for images and writes them as JSON.

python scripts/predict.py --run-dir runs/demo --out predictions photos/ image.jpg
"""

import argparse
from pathlib import Path

from sepc_tf.command_line import run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--checkpoint", default="best", help="best, last, or a checkpoint's path")
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures and JSON")
    parser.add_argument("--min-score", type=float, default=0.3, help="draw from this score on")
    parser.add_argument("--limit", type=int, help="at most so many images")
    parser.add_argument("paths", nargs="+", type=Path, help="images or folders")
    args = parser.parse_args()

    from sepc_tf.predict import list_images, predict_files
    from sepc_tf.runs import load_run

    list_images(args.paths)  # a missing path is an error before the model is built
    found, failed = predict_files(
        load_run(args.run_dir, args.checkpoint), args.paths, args.out, args.min_score, args.limit
    )
    print(f"{len(found)} images predicted, {len(failed)} unreadable: {args.out}")
    return 1 if failed and not found else 0


run(main)
