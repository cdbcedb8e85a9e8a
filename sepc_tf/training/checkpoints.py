"""Checkpoints of a training run: one file holds everything a run needs to continue exactly.

A checkpoint is an uncompressed `.npz` (a zip with a checksum per array): the detector's variables
under `model/<path>`, the optimizer's under `optimizer/<index>`, the moving averages under
`ema/<path>`, and a JSON `meta` (step, seconds trained). It is written beside its final name,
flushed and renamed, so a killed process leaves the old file or the new one.
"""

import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np

from sepc_tf.errors import CheckpointError

_STEP_FILE = re.compile(r"step_(\d+)\.npz")


def write_checkpoint(path, arrays, meta):
    """Writes arrays and metadata atomically.

    Args:
        path: the `.npz` file.
        arrays: `dict[str, np.ndarray]`.
        meta: what `json.dumps` accepts.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, **arrays, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_checkpoint(path):
    """Reads what `write_checkpoint` wrote.

    Returns:
        (arrays, meta).

    Raises:
        CheckpointError: the file is missing, cut off, damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return arrays, meta


def step_files(directory):
    """Returns the step checkpoints of a folder as `[(step, path), ...]`, newest first."""
    matches = [(_STEP_FILE.fullmatch(path.name), path) for path in Path(directory).glob("*.npz")]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def read_latest(directory, warn):
    """Reads the newest usable step checkpoint, warning about every damaged one passed over.

    Args:
        directory: a run's `checkpoints` folder.
        warn: called with one message for each file that cannot be used.

    Returns:
        (arrays, meta), or None where there is no usable checkpoint.
    """
    for _, path in step_files(directory):
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            warn(f"{error}; falling back to the checkpoint before it")
    return None


def remove_old(directory, keep):
    """Deletes all but the newest `keep` step checkpoints."""
    for _, path in step_files(directory)[keep:]:
        path.unlink()


def section(arrays, name):
    """Returns the arrays of one section ("model", "optimizer", "ema") without its prefix."""
    prefix = f"{name}/"
    return {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}
