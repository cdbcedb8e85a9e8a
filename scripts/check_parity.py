"""Compares this package with the authors' code, case by case of a golden folder.

python scripts/check_parity.py --golden ../shared/golden --case 'detector_*'
"""

import argparse
from pathlib import Path

from sepc_tf.command_line import run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--golden", type=Path, required=True, help="folder with manifest.json")
    parser.add_argument("--case", default="*", metavar="GLOB", help="as 'retina_*'; default: all")
    args = parser.parse_args()

    import tensorflow as tf

    from sepc_tf.parity import check_case, load_cases

    tf.get_logger().setLevel("ERROR")  # every case traces its own graph
    passed = failed = coarse = 0
    for case in load_cases(args.golden, args.case):
        comparison = check_case(case)
        print(comparison, flush=True)
        passed, failed = passed + comparison.passed, failed + (not comparison.passed)
        coarse += comparison.passed and bool(comparison.coarse)
    if coarse:
        print(f"{coarse} of those passed hold gradients that could only be compared coarsely")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


run(main)
