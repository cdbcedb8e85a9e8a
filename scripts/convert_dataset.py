"""`sepc-tf convert-dataset` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["convert-dataset", *sys.argv[1:]]))
