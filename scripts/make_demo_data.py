"""`sepc-tf make-demo-data` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["make-demo-data", *sys.argv[1:]]))
