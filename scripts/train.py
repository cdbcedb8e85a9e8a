"""Trains a detector; started again with the same run directory, it continues where it stopped.

python scripts/train.py --config configs/demo_sepc_lite.yaml --run-dir runs/demo train.epochs=2
"""

import argparse
from pathlib import Path

from sepc_tf.command_line import run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a file of configs/")
    parser.add_argument("--run-dir", type=Path, help="default: runs/<name of the config>")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.epochs=2")
    args = parser.parse_args()

    from sepc_tf.config import load_config
    from sepc_tf.train import train

    config = load_config(args.config, args.overrides)
    train(config, args.run_dir or Path("runs") / args.config.stem)


run(main)
