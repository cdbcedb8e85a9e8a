"""`sepc-tf check-dataset` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["check-dataset", *sys.argv[1:]]))
