"""Trains a list of configs over seeds and compares them in one table and its plots.

  sepc-tf ablate --configs demo_baseline demo_sepc --seeds 0 1 --out runs/ablation train.epochs=9
  sepc-tf ablate --experiment fig7 train.epochs=9

An experiment is a YAML list of {config: ..., label: ..., overrides: [key=value, ...]}; some come
with the package. Stopped at any moment and started again, it goes on where it was.
"""

import sys
from pathlib import Path

from sepc_tf.cli.numbers import whole_number


def add_arguments(parser):
    compared = parser.add_mutually_exclusive_group(required=True)
    compared.add_argument("--configs", type=Path, nargs="+", metavar="FILE_OR_NAME")
    compared.add_argument(
        "--experiment",
        metavar="FILE_OR_NAME",
        help="a list of configs with labels and overrides; fig7, stack, shared, levels, necks and "
        "detectors are packaged",
    )
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0], metavar="SEED")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/ablation, or runs/EXPERIMENT"
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="default: the --out directory")
    parser.add_argument(
        "--jobs", type=whole_number(1), default=1, help="trainings at the same time"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of all trainings")


def run(arguments):
    from sepc_tf.ablation import (
        cases_of_configs,
        measure,
        plan,
        read_experiment,
        train_all,
        write_report,
    )
    from sepc_tf.files import check_writable

    if arguments.experiment:
        cases = read_experiment(arguments.experiment)
    else:
        cases = cases_of_configs(arguments.configs)
    name = Path(arguments.experiment).stem if arguments.experiment else "ablation"
    out = arguments.out or Path("runs") / name
    check_writable(out)
    trainings = plan(cases, arguments.seeds, out, arguments.overrides)
    failed = train_all(trainings, arguments.jobs)
    finished = [item for item in trainings if item not in failed]
    if finished:
        page = write_report(measure(finished), arguments.report or out, arguments.command_line)
        print(f"table and plots: {page}")
    for item in failed:
        print(f"error: {item.name} failed: see {item.log_file}", file=sys.stderr)
    return 1 if failed else 0
