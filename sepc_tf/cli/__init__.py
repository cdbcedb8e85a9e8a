"""The console command `sepc-tf`, also `python -m sepc_tf`: one file per subcommand.

A subcommand is a module with `add_arguments(parser)` and `run(arguments)`; its docstring is its
help. What takes long to import is imported in `run`. Commands of two words, as `analyze levels`,
are those that the module of the first word lists as `SUBCOMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import shlex
import sys

import sepc_tf
from sepc_tf.allocator import keep_freed_memory
from sepc_tf.cli.quiet import KNOWN_RECORDS, quiet_tensorflow
from sepc_tf.errors import Terminated, UserError
from sepc_tf.progress import shown

COMMANDS = (
    "train",
    "evaluate",
    "analyze",
    "compare",
    "predict",
    "export",
    "configs",
    "check-dataset",
    "anchors",
    "make-demo-data",
    "convert",
    "convert-dataset",
    "ablate",
    "flops",
    "benchmark",
    "check-parity",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: of the command line, the command's name first; `sys.argv[1:]` by default.

    Returns:
        Exit status: 0 on success, 1 where the command says so, 2 with one `error:` line for what
        the user can mend, 130 after an interrupt, 141 where the output is no longer read, 143 where
        SIGTERM stopped a training.

    Example:
        >>> main(["configs", "show", "demo_sepc_lite", "--resolved"])  # doctest: +ELLIPSIS
        detector:
          type: retinanet
        ...
        0
    """
    keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    modules = {name: importlib.import_module(_module_name(name)) for name in COMMANDS}
    name, rest = _command(arguments, modules)
    module = modules[name]
    if rest and rest[0] in getattr(module, "SUBCOMMANDS", ()):
        name, rest = f"{name} {rest[0]}", rest[1:]
        module = importlib.import_module(_module_name(name))
    parser = argparse.ArgumentParser(
        prog=f"sepc-tf {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.add_argument(
        "--verbose", action="store_true", help="TensorFlow's own messages, and errors' tracebacks"
    )
    parsed = parser.parse_intermixed_args(rest)
    parsed.command_line = shlex.join(["sepc-tf", *arguments])
    return _run(module.run, parsed)


def _module_name(command):
    return f"{__name__}.{re.sub('[- ]', '_', command)}"


def _command(arguments, modules):
    """The command's name and its arguments."""
    width = max(map(len, modules))
    lines = [f"  {name:{width}}  {m.__doc__.splitlines()[0]}" for name, m in modules.items()]
    parser = argparse.ArgumentParser(
        prog="sepc-tf",
        usage="sepc-tf [-h] [--version] COMMAND ...",
        description="Object detectors with pyramid convolution. Commands:\n\n" + "\n".join(lines),
        epilog="`sepc-tf COMMAND --help` tells what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=sepc_tf.__version__)
    parser.add_argument("command", choices=modules, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    return parsed.command, parsed.arguments


def _run(function, arguments):
    if arguments.verbose:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_StandardOutput()])
    logger = logging.getLogger("sepc_tf")
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with quiet_tensorflow(), shown():
            return _exit_status(function, arguments)
    finally:
        logger.setLevel(level)


def _exit_status(function, arguments):
    try:
        status = function(arguments) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # what reads the output has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return _say("interrupted; start again with the same run directory to continue", 130)
    except Terminated as error:
        return _say(str(error), 143)
    except (UserError, OSError) as error:
        if arguments.verbose:
            raise
        return _say(f"error: {_message(error)}", 2)
    except Exception as error:
        # Raised inside tf.data, which wraps it.
        _, found, message = str(error).partition("UnreadableImageError: ")
        if arguments.verbose or not found:
            raise
        return _say(f"error: {message.splitlines()[0]}", 2)


def _message(error):
    """The text of an error; where the operating system refused a file, which and what to do."""
    if isinstance(error, UserError) or not error.filename:
        return str(error)
    advice = ""
    if isinstance(error, PermissionError):
        advice = "; change its permissions, or run as a user who may read it"
    return f"{error.filename}: {error.strerror}{advice}"


def _say(message, status):
    print(message, file=sys.stderr)
    return status


class _StandardOutput(logging.StreamHandler):
    """Logs to what `sys.stdout` is at the time, so that lines pass above a live bar."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stdout

    def filter(self, record):
        asked_for = os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1")
        known = KNOWN_RECORDS.match(record.getMessage())
        return super().filter(record) and (asked_for or not known)
