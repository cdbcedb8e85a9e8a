"""`sepc-tf check-parity` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["check-parity", *sys.argv[1:]]))
