import io
import json
import pickle
import struct
import sys
import time
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.numpy

from sepc_tf.checkpoints import CheckpointError, read_state_dict
from sepc_tf.checkpoints.io import reason_of

pytestmark = pytest.mark.same_on_both_stacks

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


def whole_file(path, kind):
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.full(1, 7)}
    save = {"stored": np.savez, "deflated": np.savez_compressed}
    if kind in save:
        save[kind](path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path)
    return path.read_bytes()


KINDS = [("stored", ".npz"), ("deflated", ".npz"), ("safetensors", ".safetensors")]


@pytest.mark.parametrize(("kind", "suffix"), KINDS)
def test_a_file_cut_off_anywhere(tmp_path, kind, suffix):
    path = tmp_path / f"model{suffix}"
    whole = whole_file(path, kind)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"checkpoint .*model{suffix}: not a readable"):
            read_state_dict(path)


@pytest.mark.parametrize(("kind", "suffix"), KINDS)
def test_one_flipped_bit_is_never_another_error(tmp_path, kind, suffix):
    """Nor a wrong number where the format has checksums: in an .npz, but not in .safetensors.

    A whole array may be missing: a longer comment in the zip's directory hides the next entry.
    """
    path = tmp_path / f"model{suffix}"
    whole = whole_file(path, kind)
    expected = read_state_dict(path)
    refused = 0
    bits = range(0, 8 * len(whole), 3)  # every byte and every position in it
    for bit in bits:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = read_state_dict(path)
        except CheckpointError as error:
            assert f"checkpoint {path}: not a readable {suffix} file" in str(error)
            refused += 1
            continue
        if suffix == ".npz":
            for key, value in found.items():
                np.testing.assert_array_equal(value, expected[key])
    assert refused > len(bits) / 8


def write_npz(path, shape, data=b"", descr="<f4", compression=zipfile.ZIP_STORED):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", header.getvalue() + data)


def test_an_array_that_claims_more_than_it_holds_is_not_allocated(tmp_path):
    path = tmp_path / "model.npz"
    write_npz(path, (2**40,), b"1234")
    message = r"a\.npy claims float32 \[1099511627776\], 4398046511104 bytes, and holds 4\)"
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(path)


def test_an_archive_made_to_fill_the_memory_is_not_unpacked(tmp_path):
    path = tmp_path / "model.npz"
    count = 2**20
    write_npz(path, (count,), bytes(4 * count), compression=zipfile.ZIP_DEFLATED)
    packed = path.stat().st_size
    assert 4 * count > 500 * packed, "packs well, yet is small enough to be harmless"
    assert read_state_dict(path)["a"].shape == (count,)
    # The directory entry, in which 4 GB are claimed for the same bytes.
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{packed} bytes would unpack to {2**32 - 2}"):
        read_state_dict(path)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_npz_arrays_of_any_shape_and_order(tmp_path, shape, order):
    array = np.asarray(np.random.default_rng(0).normal(size=shape), np.float32, order=order)
    np.savez(tmp_path / "model.npz", a=array, half=array.astype(np.float16))
    state_dict = read_state_dict(tmp_path / "model.npz")
    np.testing.assert_array_equal(state_dict["a"], array)
    assert state_dict["a"].shape == shape and state_dict["a"].dtype == np.float32
    assert state_dict["half"].dtype == np.float32
    state_dict["a"][...] = 0  # they are the caller's own


def test_what_safetensors_itself_wrote(tmp_path):
    rng = np.random.default_rng(0)
    types_ = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
    arrays = {name: (100 * rng.random((3, 5))).astype(name) for name in types_}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    state_dict = read_state_dict(tmp_path / "model.safetensors")
    assert set(state_dict) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(state_dict[name], array)
        assert state_dict[name].dtype == (np.float32 if name == "f2" else np.dtype(name))


def test_a_type_that_numpy_has_not_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": ("F8_E4M3", [2], b"ab")})
    with pytest.raises(CheckpointError, match="a is of type F8_E4M3; expected one of BF16, F64"):
        read_state_dict(path)


def test_a_safetensors_file_is_read_in_linear_time(tmp_path):
    """Slicing the rest of the file for each of its 500 tensors took 500 times as long."""
    path = tmp_path / "model.safetensors"
    arrays = {f"{i:03d}": np.full(2**13, i, np.float32) for i in range(500)}
    safetensors.numpy.save_file(arrays, path)

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    plain = min(seconds(path.read_bytes) for _ in range(5))
    read = min(seconds(lambda: read_state_dict(path)) for _ in range(5))
    assert read < 50 * plain, f"{read:.3f} s for what is read as bytes in {plain:.3f} s"
    state_dict = read_state_dict(path)
    assert all((state_dict[name] == array).all() for name, array in arrays.items())


def test_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "model.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(
        CheckpointError, match=r"a\.npy holds Python objects, not numbers"
    ) as raised:
        read_state_dict(tmp_path / "model.npz")
    assert "allow_pickle" not in str(raised.value)


@pytest.fixture
def fake_torch(monkeypatch):
    """A module in the place of PyTorch with the given version, whose `load` raises an error."""

    def install(version, error):
        def load(*args, **kwargs):
            raise error

        torch = types.SimpleNamespace(__version__=version, load=load)
        monkeypatch.setitem(sys.modules, "torch", torch)

    return install


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cpu"])
def test_a_torch_that_can_be_made_to_execute_code_is_refused(tmp_path, fake_torch, version):
    (tmp_path / "model.pth").write_bytes(b"x")
    fake_torch(version, AssertionError("must not be called"))
    with pytest.raises(CheckpointError, match=r"PyTorch .*execute code.*torch>=2\.6") as raised:
        read_state_dict(tmp_path / "model.pth")
    assert version in str(raised.value)


@pytest.mark.parametrize("kind", [pickle.UnpicklingError, RuntimeError])
@pytest.mark.parametrize("version", ["2.6.0", "2.13.0+cpu", "3.0.0a0+git1234567"])
def test_advice_to_switch_off_safety_is_not_passed_on(tmp_path, fake_torch, version, kind):
    (tmp_path / "model.pth").write_bytes(b"x")
    advice = (
        "Weights only load failed. Re-running `torch.load` with `weights_only` set to `False` will "
        "likely succeed, do so only if you trust the source.\n"
        "Unsupported global: GLOBAL os.system was not an allowed global by default. Please use "
        "`torch.serialization.add_safe_globals([system])`"
    )
    fake_torch(version, kind(advice))
    with pytest.raises(CheckpointError) as raised:
        read_state_dict(tmp_path / "model.pth")
    for word in ("weights_only", "trust", "add_safe_globals", "likely succeed"):
        assert word not in str(raised.value)
    assert ("os.system" in str(raised.value)) == (kind is pickle.UnpicklingError)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("unexpected end of data", "unexpected end of data"),
        ("two\nlines", "two"),
        ("", "ValueError"),
        ("Object arrays cannot be loaded when allow_pickle=False", "ValueError"),
        ("... If you trust the source of the saved model, pass `safe_mode=False`", "ValueError"),
    ],
)
def test_reasons(message, reason):
    assert reason_of(ValueError(message)) == reason


def test_pytorch_tensors_that_are_no_plain_arrays(tmp_path):
    torch = pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    path = tmp_path / "model.pth"

    def saved(**content):
        torch.save(content, path)
        return read_state_dict(path)

    # A parameter that requires a gradient, and one of 16 bits.
    weight = torch.nn.Parameter(torch.tensor([1.5, 2.0]))
    np.testing.assert_array_equal(saved(a=weight)["a"], [1.5, 2.0])
    assert saved(a=weight.detach().bfloat16())["a"].dtype == np.float32
    with pytest.raises(
        CheckpointError, match=r"a claims torch.float16 \[1048576, 1048576\], .* 2$"
    ):
        saved(a=torch.zeros(1, dtype=torch.float16).expand(2**20, 2**20))
    with pytest.raises(CheckpointError, match="a is no dense tensor"):
        saved(a=torch.eye(3).to_sparse())
    with pytest.raises(CheckpointError, match="expected a dict of tensors"):
        torch.save({1: torch.zeros(2)}, path)
        read_state_dict(path)


def test_missing_file_and_unknown_suffix(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth: no such file"):
        read_state_dict(tmp_path / "absent.pth")
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"expected one of \.pth.* got '\.ckpt'"):
        read_state_dict(tmp_path / "model.ckpt")
