"""A step that is not finite ends the training."""

import pytest

from sepc_tf.errors import NonFiniteLossError
from sepc_tf.training.non_finite import StopOnNonFinite
from sepc_tf.training.state import RunState


def test_a_non_finite_step_stops_and_names_its_files(model):
    state = RunState(steps_per_epoch=10, step=7)
    guard = StopOnNonFinite(state, lambda step: [f"image_of_step_{step}.jpg"])
    guard.on_train_batch_end(0, {"loss": 1.0, "non_finite": 0.0})
    with pytest.raises(NonFiniteLossError, match=r"step 7.*box nan.*image_of_step_6\.jpg"):
        guard.on_train_batch_end(0, {"loss": float("nan"), "box": float("nan")})
    with pytest.raises(NonFiniteLossError):
        guard.on_train_batch_end(0, {"loss": 1.0, "non_finite": 1.0})
