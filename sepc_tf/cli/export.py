"""Exports a run as a SavedModel that takes uint8 images of any size.

sepc-tf export --run-dir runs/demo --out runs/demo/saved_model
"""

from pathlib import Path


def add_arguments(parser):
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--checkpoint", default="best", help="best, last, or a checkpoint's path")
    parser.add_argument("--out", type=Path, required=True, help="folder of the SavedModel")


def run(arguments):
    from sepc_tf.export import export
    from sepc_tf.runs import load_run

    directory = export(load_run(arguments.run_dir, arguments.checkpoint), arguments.out)
    print(f"SavedModel: {directory}")
