"""The moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from sepc_tf.checkpoints.variables import assign_variables, named_variables, read_variables
from sepc_tf.training.state import RunState


class WeightAverage(keras.callbacks.Callback):
    """Exponential moving average of the weights: `a <- d a + (1 - d) w` after every step.

    `d = min(decay, (1 + step) / (10 + step))`, so that the first steps do not linger.

    Args:
        state: the `RunState`.
        detector: a built model.
        decay: the `decay` above, within 0..1.

    Example:
        >>> from sepc_tf.training.state import StepCounter
        >>> state = RunState(steps_per_epoch=2)
        >>> average = WeightAverage(state, detector, decay=0.999)
        >>> callbacks = [StepCounter(state), average]  # of detector.fit
        >>> with average.applied():
        ...     detector.save("averaged.keras")
    """

    def __init__(self, state: RunState, detector: keras.Model, decay: float) -> None:
        super().__init__()
        self.state = state
        self.decay = decay
        self.weights = named_variables(detector)
        self.averages = {
            name: tf.Variable(variable.numpy(), trainable=False)
            for name, variable in self.weights.items()
        }

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = self.state.step
        self._update(tf.constant(min(self.decay, (1 + step) / (10 + step)), tf.float32))

    @tf.function
    def _update(self, decay):
        for name, average in self.averages.items():
            weight = tf.convert_to_tensor(self.weights[name])
            if average.dtype.is_floating:
                average.assign_add((1 - tf.cast(decay, average.dtype)) * (weight - average))
            else:
                average.assign(weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the averages in place of the weights inside a `with` block."""
        trained = read_variables(self.weights)
        assign_variables(self.weights, read_variables(self.averages), "moving averages")
        try:
            yield
        finally:
            assign_variables(self.weights, trained, "trained weights")
