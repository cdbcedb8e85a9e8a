"""What is saved when, and that it comes back."""

import numpy as np

from sepc_tf.training.checkpoints import read_checkpoint, section
from sepc_tf.training.saving import Checkpoints
from sepc_tf.training.state import RunState
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
