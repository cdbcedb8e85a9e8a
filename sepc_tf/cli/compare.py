"""Compares two runs on their validation set, with bootstrap intervals.

  sepc-tf compare runs/baseline runs/sepc_lite

A star marks an interval that leaves out zero.
"""

import argparse
from pathlib import Path


def add_arguments(parser):
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN_DIR")
    parser.add_argument("--checkpoint", default="best", choices=["best", "last"])
    parser.add_argument("--samples", type=_positive, default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for both runs")


def run(arguments):
    from rich.console import Console

    from sepc_tf.analysis.comparison import compare_runs
    from sepc_tf.files import write_json

    comparison = compare_runs(
        *arguments.runs,
        arguments.checkpoint,
        arguments.overrides,
        arguments.samples,
        arguments.seed,
    )
    Console().print(comparison.table(*map(str, arguments.runs)))
    if arguments.json:
        write_json(arguments.json, comparison.to_dict())


def _positive(text):
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)
