"""`sepc-tf flops` of a checkout; see `--help`."""

import sys

from sepc_tf.cli import main

sys.exit(main(["flops", *sys.argv[1:]]))
