"""`python -m sepc_tf` is the console command `sepc-tf`."""

import sys

from sepc_tf.cli import main

sys.exit(main())
