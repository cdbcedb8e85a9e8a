"""Runs a command without the lines in which TensorFlow tells about itself.

Its libraries write them to file descriptor 2, most of them before anything can be configured: that
there is no GPU, that oneDNN is on, which instructions the processor has. `quiet_tensorflow` leads
that descriptor through a filter. The filter is a process of its own, so that what a crash writes
still comes out, and it leaves out lines that are known to mean nothing and no others. Where the
command does not come to its end, it prints the lines that it left out as well.
"""

import contextlib
import os
import re
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Iterator

_END = b"\x00the command came to its end\n"


def _record(severity):
    """The head of a record of TensorFlow's C++ log, in its own form or in Abseil's."""
    own, abseil = rf"\d{{4}}-\d\d-\d\d [\d:.]+: {severity} ", rf"{severity}\d{{4}} [\d:.]+ +\d+ "
    return rf"(?:{own}|{abseil})\S+\.(?:cc|h):\d+\] "


_KNOWN = [
    _record("I"),
    r"To enable the following instructions: .* rebuild TensorFlow",  # second line of an I
    r"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR",
    # There is no driver (303), or no device to be seen; any other reason is worth reading.
    _record("[WE]") + r"failed call to cuInit: .*(?:\(303\)|CUDA_ERROR_NO_DEVICE)",
    # Several libraries of one process bring the same CUDA libraries.
    _record("[WE]") + r"Unable to register cu\w+ factory: Attempting to register factory",
    _record("[WE]") + r"computation placer already registered",
    # TensorFlow 2.15, when it compiles for the CPU.
    _record("E") + r"SetPriority unimplemented for this stream\.",
    r"INFO: Created TensorFlow Lite XNNPACK delegate for CPU\.",
]
KNOWN = re.compile("|".join(_KNOWN).encode())
# The same of Python's log: exported models are not trained, and their graphs, of frozen functions,
# are as their converters want them.
KNOWN_RECORDS = re.compile(
    r"Importing a function \(\w+\) with ops with unsaved custom gradients"
    r"|Please consider providing the trackable_obj argument in the from_concrete_functions"
    r"|Please consider (?:to run )?pre-processing before quantization"
)


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Inside the `with` block, known lines on file descriptor 2 are left out.

    `TF_CPP_MIN_LOG_LEVEL` becomes 2 where it is not set: TensorFlow's errors are shown, its
    warnings and information are not. Where it is 0 or 1 they are asked for, and nothing is left
    out. An exception that leaves the block brings all lines back.

    Example:
        >>> with quiet_tensorflow():
        ...     import tensorflow as tf
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") in ("0", "1"):
        yield
        return
    # That of the package which the extra `addons` is for.
    warnings.filterwarnings("ignore", r"\s*TensorFlow Addons \(TFA\) has ended development")
    sys.stderr.flush()
    outside = os.dup(2)
    reading, writing = os.pipe()
    # In a session of its own: an interrupt from the terminal is for the command, not the filter.
    filtering = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=reading,
        stdout=subprocess.DEVNULL,
        stderr=outside,
        start_new_session=True,
    )
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    end = b""
    try:
        yield
        end = _END
    finally:
        sys.stderr.flush()
        os.write(2, end)
        os.dup2(outside, 2)  # ends the filter's input
        os.close(outside)
        filtering.wait()


def _filter(source, target):
    """Copies lines but for the known ones; those follow if the source ends without `_END`."""
    left_out = deque(maxlen=1000)
    for line in source:
        if line.endswith(_END):
            target.write(line[: -len(_END)])
            target.flush()
            return
        if KNOWN.match(line):
            left_out.append(line)
        else:
            target.write(line)
            target.flush()
    target.writelines(left_out)
    target.flush()


if __name__ == "__main__":
    _filter(sys.stdin.buffer, sys.stderr.buffer)
