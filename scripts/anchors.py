"""`sepc-tf anchors` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["anchors", *sys.argv[1:]]))
