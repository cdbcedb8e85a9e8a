"""Reading state dicts from files: PyTorch's `.pth`, `.npz`, `.safetensors`."""

import json
import pickle
from pathlib import Path

import numpy as np

from sepc_tf.errors import CheckpointError

_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def read_state_dict(path):
    """Reads the arrays of a checkpoint file; code inside a file is never executed.

    `.pth`, `.pt` and `.pth.tar` need PyTorch (`pip install sepc-tf[convert]`) and are read with
    its `weights_only=True`, in the old and the new serialisation. A dict under "state_dict" or
    "model" is unwrapped, and a "module." before every key (from DataParallel) removed.

    Args:
        path: a `.pth`, `.pt`, `.tar`, `.npz` or `.safetensors` file.

    Returns:
        dict of name -> numpy array; floating types of 16 bits come as float32.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, no checkpoint, or holds more than arrays.

    Example:
        >>> state_dict = read_state_dict("retinanet_sepc.pth")
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    readers = {
        ".pth": _read_torch,
        ".pt": _read_torch,
        ".tar": _read_torch,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
    }
    if path.suffix not in readers:
        raise CheckpointError(
            f"checkpoint {path}: expected one of {', '.join(readers)}, got {path.suffix!r}"
        )
    state_dict = readers[path.suffix](path)
    if not state_dict:
        raise CheckpointError(f"checkpoint {path}: holds no arrays")
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return state_dict


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: _widened(archive[key]) for key in archive.files}
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise CheckpointError(f"checkpoint {path}: not a readable .npz file ({error})") from error


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"checkpoint {path}: reading it needs PyTorch: pip install 'sepc-tf[convert]' "
            "(or convert the file to .npz or .safetensors elsewhere)"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Either garbage or an object other than tensors and plain containers; it was not executed.
        raise CheckpointError(
            f"checkpoint {path}: not a PyTorch checkpoint, or one that holds more than tensors "
            f"and plain containers; nothing in it was executed ({_first_line(error)})"
        ) from error
    except Exception as error:  # truncated archives end in many kinds of error
        raise CheckpointError(
            f"checkpoint {path}: damaged or not a PyTorch checkpoint ({_first_line(error)})"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise CheckpointError(f"checkpoint {path}: expected a dict of tensors (a state_dict)")
    return {
        key: (value.float() if value.is_floating_point() else value).numpy()
        for key, value in content.items()
    }


def _read_safetensors(path):
    # 8 bytes: length of the JSON header; the header: name -> dtype, shape, byte range of the rest.
    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        return {key: _array(entry, data[8 + length :]) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint {path}: not a readable .safetensors file ({error})"
        ) from error


def _array(entry, data):
    begin, end = entry["data_offsets"]
    if entry["dtype"] == "BF16":  # the upper half of a float32
        raw = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
        return raw.view(np.float32).reshape(entry["shape"])
    array = np.frombuffer(data[begin:end], _SAFETENSORS_TYPES[entry["dtype"]])
    return _widened(array.reshape(entry["shape"]))


def _widened(array):
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]
