"""The moving average against its recurrence."""

import pytest

from sepc_tf.training.state import RunState
from sepc_tf.training.weight_average import WeightAverage


def test_the_average_follows_its_recurrence(model, set_kernel):
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
