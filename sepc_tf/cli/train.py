"""Trains a detector; the same command again continues where it stopped.

sepc-tf train --config demo_sepc_lite --run-dir runs/demo train.epochs=2
"""

from pathlib import Path


def add_arguments(parser):
    parser.add_argument(
        "--config", type=Path, required=True, help="a file, or a name of `sepc-tf configs list`"
    )
    parser.add_argument("--run-dir", type=Path, help="default: runs/<name of the config>")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.epochs=2")


def run(arguments):
    from sepc_tf.config import load_config
    from sepc_tf.train import train

    config = load_config(arguments.config, arguments.overrides)
    train(config, arguments.run_dir or Path("runs") / arguments.config.stem)
