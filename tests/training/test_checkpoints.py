"""Checkpoints: exact round trip, damage noticed, nothing half assigned."""

import io
import resource
import struct
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints.variables import assign_variables
from sepc_tf.errors import CheckpointError, OutputError
from sepc_tf.training.checkpoints import (
    is_readable,
    read_checkpoint,
    read_latest,
    read_meta,
    remove_old,
    section,
    step_files,
    write_checkpoint,
)

ARRAYS = {
    "model/a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "model/transposed": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "model/empty": np.zeros((0, 3), np.float32),
    "model/half": np.arange(3, dtype=np.float16),
    "optimizer/0": np.int64(7),
}


def assert_equal(read, arrays):
    assert read.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(read[name], value)
        assert read[name].dtype == value.dtype and read[name].shape == value.shape


def test_arrays_and_metadata_come_back_equal(tmp_path):
    path = tmp_path / "step_00000003.npz"
    write_checkpoint(path, ARRAYS, {"step": 3})
    read, meta = read_checkpoint(path)
    assert meta == read_meta(path) == {"step": 3}
    assert_equal(read, ARRAYS)
    assert list(section(read, "optimizer")) == ["0"]
    assert is_readable(path)
    assert list(tmp_path.iterdir()) == [path]
    with np.load(path) as archive:  # an ordinary .npz
        assert_equal({name: archive[name] for name in ARRAYS}, ARRAYS)


def test_a_checkpoint_of_an_older_version_is_read(tmp_path):
    meta = np.frombuffer(b'{"step": 3, "seconds": 1.5}', np.uint8)
    np.savez(tmp_path / "step_3.npz", **ARRAYS, meta=meta)
    read, meta = read_checkpoint(tmp_path / "step_3.npz")
    assert_equal(read, ARRAYS)
    assert meta == {"step": 3, "seconds": 1.5}


def test_no_flipped_bit_escapes_or_changes_an_array(tmp_path):
    """Every bit of the zip's directory, and of its headers and arrays every few."""
    path = tmp_path / "step_1.npz"
    arrays = {name: ARRAYS[name] for name in ("model/a", "optimizer/0")}
    write_checkpoint(path, arrays, {"step": 1})
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    bits = [*range(8 * directory, 8 * len(whole)), *range(0, 8 * directory, 7)]
    refused = 0
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            read, meta = read_checkpoint(path)
        except CheckpointError:
            refused += 1
            continue
        # What is left are bits without a meaning for us, as the dates.
        assert_equal(read, arrays)
        assert meta == {"step": 1}
        assert is_readable(path)
    assert refused > len(bits) / 2


def test_random_damage_falls_back(tmp_path):
    rng = np.random.default_rng(0)
    write_checkpoint(tmp_path / "step_1.npz", ARRAYS, {"step": 1})
    path = tmp_path / "step_2.npz"
    write_checkpoint(path, ARRAYS, {"step": 2})
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 40)):
            damaged[place] = rng.integers(256)
        path.write_bytes(
            damaged[: len(damaged) if rng.random() < 0.7 else rng.integers(len(damaged))]
        )
        read, meta = read_latest(tmp_path, lambda text: None)
        assert_equal(read, ARRAYS)
        assert meta["step"] in (1, 2)


def npy(shape, dtype="<f4", data=b""):
    """An array file that claims a shape."""
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


@pytest.mark.parametrize(
    ("content", "compression", "reason"),
    [
        (npy((1 << 40,)), zipfile.ZIP_STORED, "does not fit its 0 bytes"),
        (npy((-4, -1), data=bytes(16)), zipfile.ZIP_STORED, "unknown dimension"),
        (npy((2,), "|O", bytes(16)), zipfile.ZIP_STORED, "does not fit"),
        (npy((1 << 23,), data=bytes(1 << 25)), zipfile.ZIP_DEFLATED, "not stored as it is"),
    ],
    ids=["terabytes", "negative", "objects", "bomb"],
)
def test_a_hostile_file_is_refused_from_its_sizes(tmp_path, content, compression, reason):
    path = tmp_path / "step_1.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", content)
        archive.writestr("meta.npy", npy((11,), "|u1", b'{"step": 1}'))
    with pytest.raises(CheckpointError, match=rf"step_1\.npz cannot be read: .*({reason})"):
        read_checkpoint(path)


@pytest.mark.parametrize("meta", [{}, {"step": "3"}, [3]])
def test_a_file_without_a_step_is_none_of_ours(tmp_path, meta):
    write_checkpoint(tmp_path / "best.npz", {}, meta)
    with pytest.raises(CheckpointError, match="names no step"):
        read_meta(tmp_path / "best.npz")


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """Many entries of the directory over the same data: a bomb without compression."""
    path = tmp_path / "step_1.npz"
    write_checkpoint(path, {"a": np.zeros(1000), "b": np.zeros(1000)}, {"step": 1})
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, first, second = archive.start_dir, *archive.infolist()[:2]
    offset = content.index(b"b.npy", start) - 4  # the offset of the local header stands before it
    assert struct.unpack_from("<I", content, offset)[0] == second.header_offset
    damaged = bytearray(content)
    struct.pack_into("<I", damaged, offset, first.header_offset)
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(tmp_path, damage):
    for step in (1, 2):
        write_checkpoint(tmp_path / f"step_{step}.npz", {"x": np.full(1000, step)}, {"step": step})
    path = tmp_path / "step_2.npz"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray(b"" if damage == "empty" else b"not a checkpoint")
    path.write_bytes(content)
    warnings = []
    _, meta = read_latest(tmp_path, warnings.append)
    assert meta == {"step": 1}
    assert len(warnings) == 1 and "step_2.npz" in warnings[0]
    assert "falling back to the checkpoint before it, step_1.npz" in warnings[0]


def test_nothing_to_fall_back_to_is_said(tmp_path):
    (tmp_path / "step_2.npz").write_bytes(b"damaged")
    warnings = []
    assert read_latest(tmp_path, warnings.append) is None
    assert len(warnings) == 1 and "falling back" not in warnings[0]
    assert "starts from the beginning" in warnings[0]


def test_a_checkpoint_that_holds_nan_is_refused_and_passed_over(tmp_path):
    write_checkpoint(tmp_path / "step_1.npz", ARRAYS, {"step": 1})
    nan = {**ARRAYS, "model/half": np.array([1, np.nan], np.float16)}
    write_checkpoint(tmp_path / "step_2.npz", nan, {"step": 2})
    with pytest.raises(CheckpointError, match=r"step_2\.npz .*model/half holds NaN or infinity"):
        read_checkpoint(tmp_path / "step_2.npz")
    assert read_latest(tmp_path, lambda text: None)[1]["step"] == 1


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 40, 300):
        write_checkpoint(tmp_path / f"step_{step}.npz", {}, {"step": step})
    remove_old(tmp_path, keep=2)
    assert [step for step, _ in step_files(tmp_path)] == [300, 40]
    assert read_latest(tmp_path / "none", print) is None


def test_damaged_files_do_not_count_among_those_kept(tmp_path):
    for step in (3, 10, 20, 30):
        write_checkpoint(tmp_path / f"step_{step}.npz", {"x": np.ones(9)}, {"step": step})
    for step in (20, 30):
        (tmp_path / f"step_{step}.npz").write_bytes(b"damaged")
    remove_old(tmp_path, keep=2)
    assert [step for step, _ in step_files(tmp_path)] == [30, 20, 10, 3]
    remove_old(tmp_path, keep=1)
    assert [step for step, _ in step_files(tmp_path)] == [30, 20, 10]
    assert read_latest(tmp_path, lambda text: None)[1] == {"step": 10}


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_save_leaves_the_checkpoint_before_and_nothing_else(tmp_path):
    path = tmp_path / "best.npz"
    write_checkpoint(path, {"x": np.ones(3)}, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*best\.npz: File too large"):
            write_checkpoint(path, {"x": np.ones(3000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [path]
    assert read_meta(path) == {"step": 1}


def test_a_misfit_lists_every_difference_and_assigns_nothing():
    variables = {name: tf.Variable(tf.zeros(2)) for name in "abc"}
    arrays = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32), "d": np.ones(1)}
    with pytest.raises(CheckpointError, match=r"(?s)missing: c.*unexpected: d.*b: shape") as error:
        assign_variables(variables, arrays, "x.npz")
    assert "x.npz" in str(error.value)
    with pytest.raises(CheckpointError, match="a: holds NaN or infinity"):
        assign_variables({"a": variables["a"]}, {"a": np.float32([1, np.inf])}, "x.npz")
    np.testing.assert_array_equal(variables["a"].numpy(), np.zeros(2))
    assign_variables({"a": variables["a"]}, {"a": arrays["a"]}, "x.npz")
    np.testing.assert_array_equal(variables["a"].numpy(), np.ones(2))
