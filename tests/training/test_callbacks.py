"""Callbacks: what is saved, averaged, evaluated and refused, with a model of one weight."""

import json

import keras
import numpy as np
import pytest

from sepc_tf.training.callbacks import (
    Checkpoints,
    Evaluation,
    NonFiniteLossError,
    RunState,
    StopOnNonFinite,
    WeightAverage,
)
from sepc_tf.training.checkpoints import read_checkpoint, read_latest, section


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, name="dense")])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model


def set_kernel(model, value):
    model.layers[0].set_weights([np.array([[value]], np.float32), np.zeros(1, np.float32)])


def test_the_average_follows_its_recurrence(model):
    state = RunState(steps_per_epoch=10)
    set_kernel(model, 1.0)
    average = WeightAverage(state, model, decay=0.5)
    expected = 1.0
    for step, value in enumerate([2.0, -1.0, 4.0], start=1):
        set_kernel(model, value)
        state.step = step
        average.on_train_batch_end(0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.averages["dense/kernel"].numpy().item() == pytest.approx(expected, rel=1e-6)
    with average.applied():
        assert model.layers[0].get_weights()[0].item() == pytest.approx(expected, rel=1e-6)
    assert model.layers[0].get_weights()[0].item() == 4.0


def test_a_non_finite_step_stops_and_names_its_files(model):
    state = RunState(steps_per_epoch=10, step=7)
    guard = StopOnNonFinite(state, lambda step: [f"image_of_step_{step}.jpg"])
    guard.on_train_batch_end(0, {"loss": 1.0, "non_finite": 0.0})
    with pytest.raises(NonFiniteLossError, match=r"step 7.*box nan.*image_of_step_6\.jpg"):
        guard.on_train_batch_end(0, {"loss": float("nan"), "box": float("nan")})
    with pytest.raises(NonFiniteLossError):
        guard.on_train_batch_end(0, {"loss": 1.0, "non_finite": 1.0})


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


def test_evaluation_keeps_history_and_best(model, tmp_path):
    state = RunState(steps_per_epoch=2)
    checkpoints = Checkpoints(state, model, tmp_path, every=100, keep=1)
    scores = iter([0.3, 0.5, 0.4])

    def evaluate():
        return {"AP": next(scores), "AP50": 0.0, "AP75": 0.0}

    evaluation = Evaluation(state, evaluate, checkpoints, tmp_path / "history.json", 2, 5)
    for step in range(1, 11):
        state.step = step
        set_kernel(model, step)
        evaluation.evaluate_if_due()
        evaluation.evaluate_if_due()  # a second call at the same step does nothing
    history = json.loads((tmp_path / "history.json").read_text())
    assert [(entry["epoch"], entry["AP"]) for entry in history] == [(2, 0.3), (4, 0.5), (5, 0.4)]
    arrays, meta = read_checkpoint(tmp_path / "best.npz")
    assert meta["step"] == 8 and section(arrays, "model")["dense/kernel"].item() == 8.0
    assert read_latest(tmp_path, print) is None  # best.npz is none to continue from
