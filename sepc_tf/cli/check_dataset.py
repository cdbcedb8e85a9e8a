"""Reports in one table what is wrong with a data set; exits 1 on errors.

sepc-tf check-dataset demo_data/annotations/instances_train.json demo_data/train
sepc-tf check-dataset --source yolo coco8/data.yaml --split val
sepc-tf check-dataset --source voc VOCdevkit/VOC2007 --split trainval
"""

from sepc_tf.errors import ConfigError


def add_arguments(parser):
    parser.add_argument(
        "path", help="COCO annotation file (json); yolo: data.yaml or its folder; voc: the folder"
    )
    parser.add_argument("images", nargs="?", help="coco: folder of the images")
    parser.add_argument("--source", choices=["coco", "yolo", "voc"], default="coco")
    parser.add_argument("--split", help="yolo, voc: default train")
    parser.add_argument("--class-names", nargs="+", help="voc: default those found")
    parser.add_argument("--quick", action="store_true", help="do not decode the images")


def run(arguments):
    from rich.console import Console

    from sepc_tf.data.check import check_dataset
    from sepc_tf.data.formats import check_dataset_of

    decode = not arguments.quick
    if arguments.source == "coco":
        if arguments.images is None or arguments.split or arguments.class_names:
            raise ConfigError(
                "check-dataset of COCO needs an annotation file and the folder of its images, and "
                "takes no --split or --class-names"
            )
        report = check_dataset(arguments.path, arguments.images, decode)
    else:
        if arguments.images is not None or (arguments.class_names and arguments.source == "yolo"):
            raise ConfigError(
                f"check-dataset --source {arguments.source} takes one path"
                + (", its class names are in data.yaml" if arguments.source == "yolo" else "")
            )
        report = check_dataset_of(
            arguments.source,
            arguments.path,
            arguments.split or "train",
            arguments.class_names,
            decode,
        )
    Console().print(report.table())
    return 1 if report.errors else 0
