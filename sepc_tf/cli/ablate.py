"""Trains a list of configs over seeds and compares them in one table and its plots.

  sepc-tf ablate --configs demo_baseline demo_sepc --seeds 0 1 --out runs/ablation train.epochs=9

Stopped at any moment and started again, it goes on where it was.
"""

import sys
from pathlib import Path

from sepc_tf.cli.numbers import whole_number


def add_arguments(parser):
    parser.add_argument("--configs", type=Path, nargs="+", required=True, metavar="FILE_OR_NAME")
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), metavar="DIR")
    parser.add_argument("--report", type=Path, metavar="DIR", help="default: the --out directory")
    parser.add_argument(
        "--jobs", type=whole_number(1), default=1, help="trainings at the same time"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def run(arguments):
    from sepc_tf.ablation import measure, plan, train_all, write_report
    from sepc_tf.files import check_writable

    check_writable(arguments.out)
    experiments = plan(arguments.configs, arguments.seeds, arguments.out)
    failed = train_all(experiments, arguments.jobs, arguments.overrides)
    finished = [item for item in experiments if item not in failed]
    if finished:
        report = arguments.report or arguments.out
        page = write_report(measure(finished), report, arguments.command_line)
        print(f"table and plots: {page}")
    for item in failed:
        print(f"error: {item.name}, seed {item.seed} failed: see {item.log_file}", file=sys.stderr)
    return 1 if failed else 0
