"""What all scripts share: log lines, and errors of the user as one message instead of a traceback."""

import logging
import sys

import absl.logging
from rich.console import Console

from sepc_tf.config import ConfigError
from sepc_tf.data.check import DatasetError
from sepc_tf.data.images import UnreadableImageError
from sepc_tf.training.callbacks import NonFiniteLossError, Terminated
from sepc_tf.training.checkpoints import CheckpointError

USER_ERRORS = (
    ConfigError,
    CheckpointError,
    DatasetError,
    UnreadableImageError,
    NonFiniteLossError,
    FileExistsError,
    FileNotFoundError,
)


def run(main):
    """Runs a script's `main` and exits: 0 on success, 2 with one `error:` line for a user's error.

    SIGTERM during training exits with 143, an interrupt with 130, as shells expect.
    """
    absl.logging.set_verbosity(absl.logging.ERROR)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("sepc_tf").setLevel(logging.INFO)
    stderr = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        code = main()
    except USER_ERRORS as error:
        stderr.print(f"error: {error}")
        code = 2
    except Terminated as error:
        stderr.print(str(error))
        code = 143
    except KeyboardInterrupt:
        stderr.print("interrupted; start again with the same run directory to continue")
        code = 130
    sys.exit(code or 0)
