"""`sepc-tf ablate` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["ablate", *sys.argv[1:]]))
