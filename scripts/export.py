"""Exports a run as a SavedModel that takes uint8 images of any size.

python scripts/export.py --run-dir runs/demo --out runs/demo/saved_model
"""

import argparse
from pathlib import Path

from sepc_tf.command_line import run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--checkpoint", default="best", help="best, last, or a checkpoint's path")
    parser.add_argument("--out", type=Path, required=True, help="folder of the SavedModel")
    args = parser.parse_args()

    from sepc_tf.export import export
    from sepc_tf.runs import load_run

    print(f"SavedModel: {export(load_run(args.run_dir, args.checkpoint), args.out)}")


run(main)
