"""Makes the demo data set: handwritten digits over a 17x range of size, COCO layout.

sepc-tf make-demo-data demo_data
"""

from sepc_tf.cli.numbers import whole_number


def add_arguments(parser):
    parser.add_argument("directory")
    parser.add_argument("--train-images", type=whole_number(0), default=1000)
    parser.add_argument("--val-images", type=whole_number(0), default=200)
    parser.add_argument("--seed", type=whole_number(0), default=0)


def run(arguments):
    from sepc_tf.data.demo import make_demo_dataset

    root = make_demo_dataset(
        arguments.directory, arguments.train_images, arguments.val_images, arguments.seed
    )
    print(f"demo data set in {root}")
