"""Fits a config's anchors to the boxes of its training data, and prints them as config lines.

sepc-tf anchors --config demo_sepc_lite
"""

from pathlib import Path


def add_arguments(parser):
    parser.add_argument("--config", type=Path, required=True, metavar="FILE_OR_NAME")
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def run(arguments):
    from sepc_tf.analysis.anchors import fit_anchors
    from sepc_tf.config import load_config
    from sepc_tf.data.sources import load_split

    config = load_config(arguments.config, arguments.overrides)
    print(fit_anchors(load_split(config.data, "train"), config).text())
