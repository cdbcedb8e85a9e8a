"""What is saved when, and that it comes back."""

import os
import signal

import numpy as np
import pytest

from sepc_tf.errors import NonFiniteLossError, Terminated
from sepc_tf.training import saving
from sepc_tf.training.checkpoints import is_readable, read_checkpoint, section, write_checkpoint
from sepc_tf.training.saving import Checkpoints
from sepc_tf.training.state import RunState
from sepc_tf.training.termination import Termination
from sepc_tf.training.weight_average import WeightAverage


def test_checkpoints_hold_weights_optimizer_and_average(model, tmp_path):
    state = RunState(steps_per_epoch=4)
    average = WeightAverage(state, model, decay=0.9)
    checkpoints = Checkpoints(state, model, tmp_path, every=2, keep=2, average=average)
    checkpoints.set_model(model)
    for step in range(1, 8):
        model.fit(np.ones((4, 1)), np.full((4, 1), step), verbose=0)
        state.step = step
        average.on_train_batch_end(0)
        checkpoints.on_train_batch_end(0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000004.npz", "step_00000006.npz"]

    saved = read_checkpoint(tmp_path / "step_00000006.npz")
    checkpoints.restore(*saved, source="test")
    assert state.step == 6
    np.testing.assert_array_equal(
        model.layers[0].get_weights()[0], section(saved[0], "model")["dense/kernel"]
    )
    assert int(model.optimizer.iterations.numpy()) == 6
    np.testing.assert_array_equal(
        average.averages["dense/kernel"].numpy(), section(saved[0], "ema")["dense/kernel"]
    )


def test_weights_that_became_nan_are_never_saved(model, set_kernel, tmp_path):
    state = RunState(steps_per_epoch=4)
    checkpoints = Checkpoints(state, model, tmp_path, every=1, keep=2)
    state.step = 1
    set_kernel(model, float("inf"))
    with pytest.raises(NonFiniteLossError, match="step 1: model/dense/kernel became NaN or inf"):
        checkpoints.on_train_batch_end(0)
    assert list(tmp_path.iterdir()) == []


def test_what_was_saved_stays_beside_damaged_files_of_later_steps(model, tmp_path):
    """As after a start from the beginning because no checkpoint could be read."""
    for step in (8, 10):
        (tmp_path / f"step_{step:08d}.npz").write_bytes(b"damaged")
    state = RunState(steps_per_epoch=4)
    checkpoints = Checkpoints(state, model, tmp_path, every=3, keep=2)
    state.step = 3
    checkpoints.on_train_batch_end(0)
    assert is_readable(tmp_path / "step_00000003.npz")


def test_sigterm_in_a_step_saves_it_and_again_while_saving_does_no_harm(
    model, tmp_path, monkeypatch
):
    state, termination = RunState(steps_per_epoch=4), Termination()
    checkpoints = Checkpoints(state, model, tmp_path, 100, keep=2, termination=termination)

    def write(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        write_checkpoint(*arguments)

    monkeypatch.setattr(saving, "write_checkpoint", write)
    with pytest.raises(Terminated, match=f"saved step 1 in {tmp_path}"), termination.listening():
        state.step = 1
        os.kill(os.getpid(), signal.SIGTERM)
        checkpoints.on_train_batch_end(0)
    assert is_readable(tmp_path / "step_00000001.npz")


def test_sigterm_while_a_regular_checkpoint_is_written_ends_the_training(
    model, tmp_path, monkeypatch
):
    state, termination = RunState(steps_per_epoch=4), Termination()
    checkpoints = Checkpoints(state, model, tmp_path, 1, keep=2, termination=termination)

    def write(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        write_checkpoint(*arguments)

    monkeypatch.setattr(saving, "write_checkpoint", write)
    with pytest.raises(Terminated, match="saved step 2"), termination.listening():
        state.step = 2
        checkpoints.on_train_batch_end(0)
    assert is_readable(tmp_path / "step_00000002.npz")
