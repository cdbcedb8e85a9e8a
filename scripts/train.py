"""`sepc-tf train` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
