"""Reports in one table what is wrong with a data set in COCO format; exits 1 on errors.

sepc-tf check-dataset demo_data/annotations/instances_train.json demo_data/train
"""


def add_arguments(parser):
    parser.add_argument("annotations", help="COCO annotation file (json)")
    parser.add_argument("images", help="folder of the images")
    parser.add_argument("--quick", action="store_true", help="do not decode the images")


def run(arguments):
    from rich.console import Console

    from sepc_tf.data.check import check_dataset

    report = check_dataset(arguments.annotations, arguments.images, decode=not arguments.quick)
    Console().print(report.table())
    return 1 if report.errors else 0
