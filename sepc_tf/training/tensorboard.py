"""The TensorBoard log of a training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import tensorflow as tf

from sepc_tf.files import writing
from sepc_tf.training.state import RunState


class LogWriter:
    """A `tf.summary` writer whose failures are `OutputError`s.

    Args:
        directory: where the event files go; None writes nothing.

    Example:
        >>> writer = LogWriter("runs/demo/tensorboard")
        >>> with writer.as_default(step=3):
        ...     _ = tf.summary.scalar("loss/total", 0.5)
        >>> writer.flush()
    """

    def __init__(self, directory: str | Path | None) -> None:
        self.directory = directory
        if directory is None:
            self._writer = tf.summary.create_noop_writer()
        else:
            with writing(directory):
                self._writer = tf.summary.create_file_writer(str(directory))

    @contextlib.contextmanager
    def as_default(self, step: int) -> Iterator[None]:
        """Inside the `with` block `tf.summary.scalar` and the like write here, for this step."""
        with writing(self.directory), self._writer.as_default(step=step):
            yield

    def flush(self) -> None:
        """Writes what is buffered."""
        with writing(self.directory):
            self._writer.flush()

    def close(self) -> None:
        """Writes what is buffered if it can, at the end of a training that may have failed."""
        with contextlib.suppress(tf.errors.OpError):
            self._writer.close()


class TensorBoardLog(keras.callbacks.Callback):
    """Writes losses, learning rate, gradient norm and images/s every so many steps.

    Args:
        state: the `RunState`.
        writer: a `LogWriter`.
        learning_rate: function from a step to the rate.
        batch_size: images of one step.
        every: steps between records.

    Example:
        >>> from sepc_tf.training.state import StepCounter
        >>> state = RunState(steps_per_epoch=2)
        >>> writer = LogWriter("tensorboard")
        >>> log = TensorBoardLog(state, writer, lambda step: 0.01, batch_size=16, every=20)
        >>> callbacks = [StepCounter(state), log]  # of detector.fit
    """

    def __init__(
        self,
        state: RunState,
        writer: LogWriter,
        learning_rate: Callable[[int], tf.Tensor],
        batch_size: int,
        every: int,
    ) -> None:
        super().__init__()
        self.state = state
        self.writer = writer
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.every = every
        self._since = None

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
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

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._since = None  # evaluation follows: its time is not training time
        self.writer.flush()
