"""Writes one split of a YOLO or Pascal VOC data set as a COCO annotation file.

sepc-tf convert-dataset yolo coco8/data.yaml --split val --out coco8_val.json
sepc-tf convert-dataset voc VOCdevkit/VOC2007 --split trainval --out voc2007.json
"""

from pathlib import Path


def add_arguments(parser):
    parser.add_argument("format", choices=["yolo", "voc"])
    parser.add_argument("path", type=Path, help="a data.yaml or its folder; a VOC folder")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--out", type=Path, required=True, help="the annotation file (json)")
    parser.add_argument(
        "--class-names", nargs="+", help="voc: the classes in order; default: those found"
    )


def run(arguments):
    from sepc_tf.data.convert_dataset import convert_dataset

    print(
        convert_dataset(
            arguments.format,
            arguments.path,
            arguments.out,
            arguments.split,
            arguments.class_names,
        )
    )
