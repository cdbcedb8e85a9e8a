"""The TensorBoard log of a training."""

import time

import keras
import tensorflow as tf


class TensorBoardLog(keras.callbacks.Callback):
    """Writes losses, learning rate, gradient norm and images/s every so many steps.

    Args:
        state: the `RunState`.
        writer: a `tf.summary` file writer.
        learning_rate: function from a step to the rate.
        batch_size: images of one step.
        every: steps between records.
    """

    def __init__(self, state, writer, learning_rate, batch_size, every):
        super().__init__()
        self.state = state
        self.writer = writer
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.every = every
        self._since = None

    def on_train_batch_end(self, batch, logs=None):
        if self._since is None:  # the first step traces the graph: not a speed to report
            self._since = (time.perf_counter(), self.state.step)
        if self.state.step % self.every:
            return
        now, step = time.perf_counter(), self.state.step
        start, first = self._since
        self._since = (now, step)
        self.model.reset_metrics()  # so that each record is a mean since the last, not of the epoch
        with self.writer.as_default(step=step):
            for name, value in (logs or {}).items():
                if name in ("grad_norm", "non_finite"):
                    continue
                tf.summary.scalar("loss/total" if name == "loss" else f"loss/{name}", value)
            if logs and "grad_norm" in logs:
                tf.summary.scalar("train/gradient_norm", logs["grad_norm"])
            tf.summary.scalar("train/learning_rate", self.learning_rate(step - 1))
            if step > first:
                rate = (step - first) * self.batch_size / (now - start)
                tf.summary.scalar("train/images_per_second", rate)

    def on_epoch_end(self, epoch, logs=None):
        self._since = None  # evaluation follows: its time is not training time
        self.writer.flush()
