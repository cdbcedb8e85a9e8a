"""Reading state dicts from files: PyTorch's `.pth`, `.npz`, `.safetensors`."""

import math
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np

from sepc_tf.errors import CheckpointError

# Before it, `weights_only=True` could be made to execute code (CVE-2025-32434).
OLDEST_TORCH = (2, 6)

# An archive may unpack to so many times its own size, or to so many bytes: weights hardly compress,
# so what passes both was made to fill the memory.
MAX_RATIO = 100
ALWAYS_ALLOWED = 2**30

_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}

_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_state_dict(path):
    """Reads the arrays of a checkpoint file; code inside a file is never executed.

    `.pth`, `.pt` and `.pth.tar` need PyTorch (`pip install sepc-tf[convert]`) and are read with
    its `weights_only=True`, in the old and the new serialisation. A dict under "state_dict" or
    "model" is unwrapped, and a "module." before every key (from DataParallel) removed. An archive
    that claims to unpack to far more than weights can is refused before anything is unpacked.

    Args:
        path: a `.pth`, `.pt`, `.tar`, `.npz` or `.safetensors` file.

    Returns:
        dict of name -> numpy array; floating types of 16 bits come as float32.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, no checkpoint, or holds more than arrays.

    Example:
        >>> np.savez("weights.npz", **{"conv1.weight": np.zeros([64, 3, 7, 7], np.float32)})
        >>> read_state_dict("weights.npz")["conv1.weight"].shape
        (64, 3, 7, 7)
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


def reason_of(error: Exception) -> str:
    """The first line of a library's message, for one of ours.

    Where that line advises to switch off a safety check, as PyTorch, numpy and Keras do, only the
    kind of the error is left.

    Example:
        >>> reason_of(ValueError("cut off"))
        'cut off'
        >>> reason_of(ValueError("Object arrays cannot be loaded when allow_pickle=False"))
        'ValueError'
    """
    line = (str(error).splitlines() or [""])[0]
    advice = re.search(r"weights.only|allow_pickle|safe_mode|unsafe|trust", line, re.IGNORECASE)
    return type(error).__name__ if advice or not line else line


def _read_npz(path):
    try:
        with zipfile.ZipFile(path) as archive:
            _check_unpacked_size(archive, path)
            return {
                member.filename.removesuffix(".npy"): _widened(_read_npy(archive, member))
                for member in archive.infolist()
            }
    except CheckpointError as error:
        raise CheckpointError(
            f"checkpoint {path}: not a readable .npz file of arrays ({error})"
        ) from error
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise CheckpointError(
            f"checkpoint {path}: not a readable .npz file ({reason_of(error)})"
        ) from error


def _check_unpacked_size(archive, path):
    """Refuses an archive by the sizes in its directory; `zipfile` unpacks no more than they say."""
    size = sum(member.file_size for member in archive.infolist())
    if size > max(ALWAYS_ALLOWED, MAX_RATIO * path.stat().st_size):
        raise CheckpointError(
            f"{path.stat().st_size} bytes would unpack to {size}: damaged, or made to fill memory"
        )


def _read_npy(archive, member):
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _NPY_HEADERS:
            raise CheckpointError(f"{member.filename} has the unknown format version {version}")
        shape, fortran_order, dtype = _NPY_HEADERS[version](file)
        if dtype.hasobject:
            raise CheckpointError(f"{member.filename} holds Python objects, not numbers")
        size, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if size != held:
            raise CheckpointError(
                f"{member.filename} claims {dtype} {list(shape)}, {size} bytes, and holds {held}"
            )
        data = bytearray(size)
        if file.readinto(data) != size:
            raise CheckpointError(f"{member.filename} is cut off")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _read_torch(path):
    torch = _import_torch(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_unpacked_size(archive, path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("state_dict", "model"):
            if isinstance(content, dict) and isinstance(content.get(name), dict):
                content = content[name]
        if (
            not isinstance(content, dict)
            or not all(map(torch.is_tensor, content.values()))
            or not all(isinstance(key, str) for key in content)
        ):
            raise CheckpointError("expected a dict of tensors (a state_dict)")
        return {key: _torch_array(torch, key, value) for key, value in content.items()}
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error
    except pickle.UnpicklingError as error:
        # Either garbage or an object other than tensors and plain containers; it was not executed.
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it names {name[1]}" if name else reason_of(error)
        raise CheckpointError(
            f"checkpoint {path}: not a PyTorch checkpoint, or one that holds more than tensors "
            f"and plain containers; nothing in it was executed ({reason})"
        ) from error
    except Exception as error:  # truncated archives end in many kinds of error
        raise CheckpointError(
            f"checkpoint {path}: damaged or not a PyTorch checkpoint ({reason_of(error)})"
        ) from error


def _import_torch(path):
    oldest = ".".join(map(str, OLDEST_TORCH))
    remedy = (
        f"pip install 'sepc-tf[convert]', which is torch>={oldest} (or convert the file to .npz or "
        ".safetensors elsewhere)"
    )
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(f"checkpoint {path}: reading it needs PyTorch: {remedy}") from error
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        raise CheckpointError(
            f"checkpoint {path}: PyTorch {torch.__version__} is installed, in which a file can "
            f"execute code even when only weights are asked for (CVE-2025-32434): {remedy}"
        )
    return torch


def _torch_array(torch, key, tensor):
    if tensor.layout != torch.strided:
        raise CheckpointError(f"{key} is no dense tensor ({tensor.layout})")
    # Strides of 0 let a few bytes claim any size.
    size, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > held:
        raise CheckpointError(
            f"{key} claims {tensor.dtype} {list(tensor.shape)}, {size} bytes, and holds {held}"
        )
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()


def _read_safetensors(path):
    from safetensors import deserialize

    try:
        entries = deserialize(path.read_bytes())
        return {name: _array(name, entry) for name, entry in entries}
    except Exception as error:  # the library does not promise which
        raise CheckpointError(
            f"checkpoint {path}: not a readable .safetensors file ({reason_of(error)})"
        ) from error


def _array(name, entry):
    shape, data = entry["shape"], entry["data"]
    if entry["dtype"] == "BF16":  # numpy has none; it is the upper half of a float32
        raw = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return raw.view(np.float32).reshape(shape)
    if entry["dtype"] not in _SAFETENSORS_TYPES:
        known = ", ".join(["BF16", *_SAFETENSORS_TYPES])
        raise ValueError(f"{name} is of type {entry['dtype']}; expected one of {known}")
    return _widened(np.frombuffer(data, _SAFETENSORS_TYPES[entry["dtype"]]).reshape(shape))


def _widened(array):
    return array.astype(np.float32) if array.dtype == np.float16 else array
