"""Checkpoints of a training run: one file holds everything a run needs to continue exactly.

A checkpoint is an uncompressed `.npz` (a zip with a checksum per array): the detector's variables
under `model/<path>`, the optimizer's under `optimizer/<index>`, the moving averages under
`ema/<path>`, and a JSON `meta` (step, seconds trained). It is written beside its final name,
flushed and renamed, so a killed process leaves the old file or the new one.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sepc_tf.checkpoints.variables import non_finite
from sepc_tf.errors import CheckpointError
from sepc_tf.files import replacing

_STEP_FILE = re.compile(r"step_(\d+)\.npz")


def write_checkpoint(path: str | Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Writes arrays and metadata atomically.

    Args:
        path: the `.npz` file.
        arrays: by name.
        meta: what `json.dumps` accepts, with the "step".

    Raises:
        OutputError: the file cannot be written; the one before is left as it was.

    Example:
        >>> write_checkpoint("step_00000003.npz", {"model/kernel": np.zeros(4)}, {"step": 3})
    """
    arrays = {**arrays, "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    size = sum(np.asarray(array).nbytes for array in arrays.values())
    # As np.savez, which leaves its zip open where writing fails.
    with replacing(path, needed=size) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def read_checkpoint(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `write_checkpoint` wrote.

    The sizes that the file claims are compared with its own before anything is read, and every
    array with its checksum.

    Returns:
        (arrays, meta); the arrays are read-only.

    Raises:
        CheckpointError: the file is missing, cut off, damaged, something else, or holds NaN.

    Example:
        >>> write_checkpoint("step_00000003.npz", {"model/kernel": np.zeros(4)}, {"step": 3})
        >>> arrays, meta = read_checkpoint("step_00000003.npz")
        >>> meta["step"], arrays["model/kernel"].shape
        (3, (4,))
    """
    return _guarded(path, _read)


def read_meta(path: str | Path) -> dict[str, Any]:
    """Reads and checks the metadata of a checkpoint alone; see `read_checkpoint`."""
    return _guarded(path, lambda archive: _meta(_array(archive, "meta.npy")))


def is_readable(path: str | Path) -> bool:
    """Whether a checkpoint is whole: every checksum is compared, no array is built."""
    try:
        return _guarded(path, lambda zip: zip.testzip() is None and "meta.npy" in zip.namelist())
    except CheckpointError:
        return False


def step_files(directory: str | Path) -> list[tuple[int, Path]]:
    """Returns the step checkpoints of a folder as `[(step, path), ...]`, newest first."""
    matches = [(_STEP_FILE.fullmatch(path.name), path) for path in Path(directory).glob("*.npz")]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def read_latest(
    directory: str | Path, warn: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads the newest usable step checkpoint, warning about every damaged one passed over.

    Args:
        directory: a run's `checkpoints` folder.
        warn: called with one message for each file that cannot be used.

    Returns:
        (arrays, meta), or None where there is no usable checkpoint.
    """
    paths = [path for _, path in step_files(directory)]
    for path, before in zip(paths, [*paths[1:], None]):
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            warn(
                f"{error}; falling back to the checkpoint before it, {before.name}"
                if before
                else f"{error}; there is none before it: the run starts from the beginning"
            )
    return None


def remove_old(directory: str | Path, keep: int) -> None:
    """Deletes step checkpoints that have `keep` newer ones, of which damaged ones do not count."""
    readable = 0
    for _, path in step_files(directory):
        if readable >= keep:
            path.unlink()
        elif is_readable(path):
            readable += 1


def section(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of one section ("model", "optimizer", "ema") without its prefix."""
    prefix = f"{name}/"
    return {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}


# Reading ------------------------------------------------------------------------------------------


def _guarded(path, read):
    """`read(archive)` of a checked archive; whatever goes wrong is a CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path.stat().st_size)
            return read(archive)
    # A flipped bit ends in NotImplementedError, RuntimeError, MemoryError, struct.error, ...
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason}") from error


def _check_sizes(archive, file_size):
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise ValueError("two arrays have the same name")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} is not stored as it is")
        if member.header_offset + member.file_size > file_size:
            raise ValueError(f"{member.filename} claims more bytes than the file has")
    if sum(member.file_size for member in members) > file_size:
        raise ValueError("its arrays claim more bytes than the file has")


def _read(archive):
    arrays = {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist()}
    meta = _meta(arrays.pop("meta"))
    if names := non_finite(arrays):
        raise ValueError(f"{names[0]} holds NaN or infinity, which detects nothing")
    return arrays, meta


def _array(archive, name):
    content = archive.read(name)  # compares the checksum
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name}: format {version} of an array, expected (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    start = stream.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"{name}: {shape} {dtype} does not fit its {len(content) - start} bytes")
    array = np.frombuffer(content, dtype, offset=start)
    return array.reshape(shape, order="F" if fortran_order else "C")


def _meta(array):
    meta = json.loads(array.tobytes())
    if not isinstance(meta, dict) or not isinstance(meta.get("step"), int):
        raise ValueError("its metadata names no step")
    return meta
