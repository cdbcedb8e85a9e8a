"""`sepc-tf predict` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
