"""`sepc-tf convert` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
