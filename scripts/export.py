"""`sepc-tf export` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["export", *sys.argv[1:]]))
