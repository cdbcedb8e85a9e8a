"""Writes the demo data set: handwritten digits over a 17x range of size, COCO layout.

Example: python scripts/make_demo_data.py demo_data
"""

import argparse
import sys

from sepc_tf.data.demo import make_demo_dataset


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--train-images", type=int, default=1000)
    parser.add_argument("--val-images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        root = make_demo_dataset(**vars(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"demo data set in {root}")


if __name__ == "__main__":
    main()
