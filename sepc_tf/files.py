"""Files that are written whole or not at all, and failures to write as one message."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sepc_tf.errors import OutputError

PARTIAL_FILES = "*.partial"  # what a killed process may leave behind


@contextlib.contextmanager
def writing(path: str | Path, needed: int | None = None) -> Iterator[None]:
    """Turns what writing raises into one message; the block should do nothing but write.

    Args:
        path: the file or folder that is written, for the message.
        needed: its size in bytes where that is known.

    Raises:
        OutputError: for any OSError or TensorFlow error inside the block: the disk is full, the
            file system is read-only, there is no permission, ...

    Example:
        >>> with writing("runs/demo/report.txt"):
        ...     size = Path("runs/demo/report.txt").write_text("AP 0.4")
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(_message(path, error.errno, error.strerror or error, needed)) from error
    except Exception as error:
        # Without TensorFlow in the process there are none of its errors either.
        tensorflow = sys.modules.get("tensorflow")
        if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
            raise
        full = isinstance(error, tensorflow.errors.ResourceExhaustedError)
        reason = (error.message or type(error).__name__).splitlines()[0]
        reason = re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]$", "", reason)  # which operation it was
        raise OutputError(_message(path, errno.ENOSPC if full else None, reason, needed)) from error


@contextlib.contextmanager
def replacing(path: str | Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` once the block has ended without an error.

    A killed process leaves the old file or the new one, and a failure leaves nothing behind.

    Args:
        path: the file; its folder is created.
        needed: its size in bytes where that is known, for the message of a full disk.

    Yields:
        A binary file.

    Raises:
        OutputError: it cannot be written; see `writing`.

    Example:
        >>> with replacing("out/predictions.json") as file:
        ...     size = file.write(b"[]")
    """
    path = Path(path)
    # Two processes that write the same file each have a partial one of their own.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with writing(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file atomically; see `replacing`."""
    content = text.encode()
    with replacing(path, needed=len(content)) as file:
        file.write(content)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Writes JSON atomically; see `replacing`."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut off, damaged, or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except ValueError as error:  # a number of thousands of digits comes with advice on Python
        raise ValueError(str(error).partition("; use sys.")[0]) from error


def check_writable(directory: str | Path) -> None:
    """Creates a folder and makes sure that files can be written in it, before the work is done.

    Raises:
        OutputError: naming the folder and the reason.

    Example:
        >>> check_writable("runs/demo/evaluation")
    """
    with writing(directory):
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:  # has no name that a kill could leave
            file.write(b"x")


def exchange(first: str | Path, second: str | Path) -> None:
    """Exchanges two files or folders of one file system in one step, which no kill can divide.

    Raises:
        OSError: one is missing, or the operating or the file system cannot do that.

    Example:
        >>> write_text("old/text", "old")
        >>> write_text("new/text", "new")
        >>> exchange("old", "new")
        >>> Path("old/text").read_text()
        'new'
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    from_here, swapped = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(from_here, os.fsencode(first), from_here, os.fsencode(second), swapped):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(first), None, str(second))


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Example:
        >>> write_text("empty", "")
        >>> sha256("empty")[:12]
        'e3b0c44298fc'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _message(path, number, reason, needed):
    advice = ""
    if number in (errno.ENOSPC, errno.EDQUOT):
        size = "" if needed is None else f"{needed / 1e6:.1f} MB are needed, "
        advice = f" ({size}{_free_megabytes(path)} free); free some space or give another place"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "; give a place where you may write"
    elif number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        advice = "; a file stands where a folder is needed, or the other way round"
    return f"cannot write {path}: {reason}{advice}"


def _free_megabytes(path):
    existing = next((p for p in (Path(path), *Path(path).parents) if p.exists()), Path("."))
    return f"{shutil.disk_usage(existing).free / 1e6:.1f} MB are"
