"""Writes one split of a YOLO or Pascal VOC data set as a COCO annotation file.

python scripts/convert_dataset.py yolo coco8/data.yaml --split val --out coco8_val.json
python scripts/convert_dataset.py voc VOCdevkit/VOC2007 --split trainval --out voc2007.json
"""

import argparse
from pathlib import Path

from sepc_tf.command_line import run


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("format", choices=["yolo", "voc"])
    parser.add_argument("path", type=Path, help="a data.yaml or its folder; a VOC folder")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--out", type=Path, required=True, help="the annotation file (json)")
    parser.add_argument(
        "--class-names", nargs="+", help="voc: the classes in order; default: those found"
    )
    args = parser.parse_args()

    from sepc_tf.data.convert_dataset import convert_dataset

    print(convert_dataset(args.format, args.path, args.out, args.split, args.class_names))


run(main)
