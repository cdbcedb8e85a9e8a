"""Checkpoints: exact round trip, damage noticed, nothing half assigned."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints.variables import assign_variables
from sepc_tf.errors import CheckpointError
from sepc_tf.training.checkpoints import (
    read_checkpoint,
    read_latest,
    remove_old,
    section,
    step_files,
    write_checkpoint,
)


def test_arrays_and_metadata_come_back_equal(tmp_path):
    arrays = {"model/a": np.arange(6, dtype=np.float32).reshape(2, 3), "optimizer/0": np.int64(7)}
    write_checkpoint(tmp_path / "step_00000003.npz", arrays, {"step": 3})
    read, meta = read_checkpoint(tmp_path / "step_00000003.npz")
    assert meta == {"step": 3}
    assert read.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(read[name], value)
        assert read[name].dtype == value.dtype
    assert list(section(read, "model")) == ["a"]
    assert not list(tmp_path.glob("*.partial"))


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


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 40, 300):
        write_checkpoint(tmp_path / f"step_{step}.npz", {}, {"step": step})
    remove_old(tmp_path, keep=2)
    assert [step for step, _ in step_files(tmp_path)] == [300, 40]
    assert read_latest(tmp_path / "none", print) is None


def test_a_misfit_lists_every_difference_and_assigns_nothing():
    variables = {name: tf.Variable(tf.zeros(2)) for name in "abc"}
    arrays = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32), "d": np.ones(1)}
    with pytest.raises(CheckpointError, match=r"(?s)missing: c.*unexpected: d.*b: shape") as error:
        assign_variables(variables, arrays, "x.npz")
    assert "x.npz" in str(error.value)
    np.testing.assert_array_equal(variables["a"].numpy(), np.zeros(2))
    assign_variables({"a": variables["a"]}, {"a": arrays["a"]}, "x.npz")
    np.testing.assert_array_equal(variables["a"].numpy(), np.ones(2))
