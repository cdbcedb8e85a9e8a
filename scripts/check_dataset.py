"""Reports in one table what is wrong with a data set in COCO format; exits 1 on errors.

Example: python scripts/check_dataset.py demo_data/annotations/instances_train.json demo_data/train
"""

import argparse
import sys

from rich.console import Console

from sepc_tf.data.check import check_dataset
from sepc_tf.errors import DatasetError


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", help="COCO annotation file (json)")
    parser.add_argument("images", help="folder of the images")
    parser.add_argument("--quick", action="store_true", help="do not decode the images")
    arguments = parser.parse_args()
    try:
        report = check_dataset(arguments.annotations, arguments.images, decode=not arguments.quick)
    except DatasetError as error:
        sys.exit(f"error: {error}")
    Console().print(report.table())
    sys.exit(1 if report.errors else 0)


if __name__ == "__main__":
    main()
