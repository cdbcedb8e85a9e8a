"""Stopping at a loss or gradient that is NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras

from sepc_tf.errors import NonFiniteLossError
from sepc_tf.training.state import RunState


class StopOnNonFinite(keras.callbacks.Callback):
    """Stops training at the first NaN or infinite loss or gradient.

    The train step has already refused the update, so the weights are those before the step.

    Args:
        state: the `RunState`.
        files_of_step: function from a step (0-based) to the file names of its images.

    Example:
        >>> from sepc_tf.training.state import StepCounter
        >>> state = RunState(steps_per_epoch=2)
        >>> stop = StopOnNonFinite(state, pipeline.files_of_step)
        >>> callbacks = [StepCounter(state), stop]  # of detector.fit
    """

    def __init__(self, state: RunState, files_of_step: Callable[[int], list[str]]) -> None:
        super().__init__()
        self.state = state
        self.files_of_step = files_of_step

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        logs = logs or {}
        if not float(logs.get("non_finite", 0.0)) and math.isfinite(float(logs.get("loss", 0.0))):
            return
        parts = ", ".join(
            f"{name} {float(value):.6g}" for name, value in logs.items() if name != "non_finite"
        )
        files = ", ".join(self.files_of_step(self.state.step - 1))
        raise NonFiniteLossError(
            f"step {self.state.step}: the loss or a gradient is not finite ({parts}). Images of "
            f"the batch: {files}. The update was not applied and nothing was saved. Check these "
            "images' annotations, or lower train.optimizer.learning_rate"
        )
