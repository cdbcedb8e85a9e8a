"""Compares this package with the authors' code, case by case of one or more golden folders.

sepc-tf check-parity --golden ../shared/golden* --case 'detector_*'
"""

from pathlib import Path


def add_arguments(parser):
    parser.add_argument(
        "--golden", type=Path, required=True, nargs="+", metavar="DIR", help="with manifest.json"
    )
    parser.add_argument("--case", default="*", metavar="GLOB", help="as 'retina_*'; default: all")


def run(arguments):
    import tensorflow as tf

    from sepc_tf.parity import check_case, load_cases
    from sepc_tf.progress import track

    tf.get_logger().setLevel("ERROR")  # every case traces its own graph
    passed = failed = coarse = 0
    for case in track(load_cases(arguments.golden, arguments.case), description="cases"):
        comparison = check_case(case)
        print(comparison, flush=True)
        passed, failed = passed + comparison.passed, failed + (not comparison.passed)
        coarse += comparison.passed and bool(comparison.coarse)
    if coarse:
        print(f"{coarse} of those passed hold gradients that could only be compared coarsely")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
