"""What all scripts share: log lines, and a user's errors as one message instead of a traceback."""

import logging
import os
import sys

from sepc_tf.errors import Terminated, UserError


def run(main):
    """Runs a script's `main` and exits: 0 on success, 2 with one `error:` line for a user's error.

    SIGTERM during training exits with 143, an interrupt with 130, as shells expect.
    """
    # TensorFlow reads it when it is imported, so everything that imports it comes after.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("sepc_tf").setLevel(logging.INFO)
    try:
        code = main() or 0
    except KeyboardInterrupt:
        code = _say("interrupted; start again with the same run directory to continue", 130)
    except Exception as error:
        if isinstance(error, Terminated):
            code = _say(str(error), 143)
        elif isinstance(error, UserError | FileExistsError | FileNotFoundError):
            code = _say(f"error: {error}", 2)
        elif "UnreadableImageError: " in str(error):  # raised inside tf.data, wrapped by it
            message = str(error).split("UnreadableImageError: ", 1)[1]
            code = _say(f"error: {message.splitlines()[0]}", 2)
        else:
            raise
    sys.exit(code)


def _say(message, code):
    print(message, file=sys.stderr)
    return code
