"""Trains a list of configs over seeds and compares them in one table and its plots.

python scripts/ablate.py --configs configs/demo_baseline.yaml configs/demo_sepc.yaml \\
    --seeds 0 1 --out runs/ablation train.epochs=9

Stopped at any moment and started again, it goes on where it was.
"""

import argparse
import shlex
import sys
from pathlib import Path

from sepc_tf.command_line import run


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), metavar="DIR")
    parser.add_argument("--report", type=Path, metavar="DIR", help="default: the --out directory")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()

    from sepc_tf.ablation import measure, plan, train_all, write_report

    experiments = plan(args.configs, args.seeds, args.out)
    failed = train_all(experiments, Path(__file__).with_name("train.py"), args.jobs, args.overrides)
    finished = [item for item in experiments if item not in failed]
    if finished:
        command = shlex.join(["python", *sys.argv])
        print(
            f"table and plots: {write_report(measure(finished), args.report or args.out, command)}"
        )
    for item in failed:
        print(f"error: {item.name}, seed {item.seed} failed: see {item.log_file}", file=sys.stderr)
    return 1 if failed else 0


run(main)
