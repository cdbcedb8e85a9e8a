"""`sepc-tf analyze` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["analyze", *sys.argv[1:]]))
