"""`sepc-tf evaluate` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
