"""`sepc-tf benchmark` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["benchmark", *sys.argv[1:]]))
