import io
import json
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from sepc_tf.checkpoints import CheckpointError, read_state_dict

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.num_batches_tracked": np.int64(7),
}


def check(state_dict):
    assert set(state_dict) == set(ARRAYS)
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(state_dict[key], value)
        assert state_dict[key].shape == value.shape


def write_safetensors(path, tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def test_npz(tmp_path):
    np.savez(tmp_path / "model.npz", **ARRAYS)
    check(read_state_dict(tmp_path / "model.npz"))


def test_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    weight, count = ARRAYS.values()
    write_safetensors(
        path,
        {
            "conv.weight": ("F32", [2, 3, 2, 2], weight.tobytes()),
            "bn.num_batches_tracked": ("I64", [], count.tobytes()),
        },
    )
    check(read_state_dict(path))


def test_safetensors_in_half_precision(tmp_path):
    path = tmp_path / "model.safetensors"
    values = np.float32([1.0, -2.5, 0.15625])
    bfloat16 = (values.view(np.uint32) >> 16).astype("<u2")
    write_safetensors(
        path,
        {
            "a": ("BF16", [3], bfloat16.tobytes()),
            "b": ("F16", [3], values.astype("<f2").tobytes()),
        },
    )
    for value in read_state_dict(path).values():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, values)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.pth.tar"])
def test_pytorch_files(tmp_path, name, wrapped, zipped):
    torch = pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    content = OrderedDict((f"module.{k}", torch.tensor(v)) for k, v in ARRAYS.items())
    if wrapped:
        content = {"meta": {"epoch": 12, "mmdet_version": "1.1.0"}, "state_dict": content}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    check(read_state_dict(tmp_path / name))


class _Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("by_torch", [True, False])
def test_code_in_a_file_is_never_executed(tmp_path, by_torch):
    torch = pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    path, target = tmp_path / "model.pth", tmp_path / "executed"
    content = {"state_dict": _Malicious(str(target))}
    if by_torch:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    target.unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        read_state_dict(path)
    assert not target.exists()


def test_damaged_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    buffer = io.BytesIO()
    torch.save({key: torch.tensor(value) for key, value in ARRAYS.items()}, buffer)
    path = tmp_path / "model.pth"
    for content in (buffer.getvalue()[:-200], b"no checkpoint at all", b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.pth"):
            read_state_dict(path)


def test_a_pytorch_file_of_something_else(tmp_path):
    torch = pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="expected a dict of tensors"):
        read_state_dict(tmp_path / "model.pth")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", bytes(range(64))])
def test_damaged_files(tmp_path, suffix, content):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"not a readable {suffix} file"):
        read_state_dict(path)


def test_truncated_files(tmp_path):
    np.savez(tmp_path / "whole.npz", **ARRAYS)
    (tmp_path / "model.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-100])
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": ("F32", [4], np.zeros(4, np.float32).tobytes())})
    path.write_bytes(path.read_bytes()[:-4])
    for name in ("model.npz", "model.safetensors"):
        with pytest.raises(CheckpointError, match=f"checkpoint .*{name}: not a readable"):
            read_state_dict(tmp_path / name)


def test_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "model.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CheckpointError, match="not a readable"):
        read_state_dict(tmp_path / "model.npz")


def test_missing_file_and_unknown_suffix(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth: no such file"):
        read_state_dict(tmp_path / "absent.pth")
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"expected one of \.pth.* got '\.ckpt'"):
        read_state_dict(tmp_path / "model.ckpt")
