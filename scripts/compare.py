"""`sepc-tf compare` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["compare", *sys.argv[1:]]))
