"""The progress line of a training."""

from __future__ import annotations

import datetime
import logging
import time

import keras
import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sepc_tf.training.state import RunState

log = logging.getLogger(__name__)


class ProgressBar(keras.callbacks.Callback):
    """One line per epoch: steps, images/s, time left of the run, each loss.

    On a terminal the line is live; in a file or pipe a line is printed every `every` steps.

    Args:
        state: the `RunState`.
        total_steps: steps of the whole run.
        batch_size: images of one step.
        every: steps between lines where there is no terminal.

    Example:
        >>> from sepc_tf.training.state import StepCounter
        >>> state = RunState(steps_per_epoch=2)
        >>> bar = ProgressBar(state, total_steps=9000, batch_size=16, every=20)
        >>> callbacks = [StepCounter(state), bar]  # of detector.fit
    """

    def __init__(self, state: RunState, total_steps: int, batch_size: int, every: int) -> None:
        super().__init__()
        self.state = state
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.every = every
        self.console = rich.get_console()  # bars on one console go below each other
        self._bar = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._start = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=self.console,
            )
            self._task = self._bar.add_task(
                "train", total=self.total_steps, completed=self.state.step, epoch=1, text=""
            )
            self._bar.start()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = self.state.step
        if self._start is None:
            self._start = (time.perf_counter(), step)
            return
        start, first = self._start
        rate = (step - first) / (time.perf_counter() - start)
        epoch = (step - 1) // self.state.steps_per_epoch + 1
        losses = "  ".join(
            f"{name} {float(value):.4f}"
            for name, value in (logs or {}).items()
            if name != "non_finite"
        )
        text = f"{rate * self.batch_size:.1f} images/s  {losses}"
        if self._bar:
            self._bar.update(self._task, completed=step, epoch=epoch, text=text)
        elif step % self.every == 0:
            left = datetime.timedelta(seconds=int((self.total_steps - step) / rate))
            log.info("epoch %d  step %d/%d  %s left  %s", epoch, step, self.total_steps, left, text)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._start = None

    def on_train_end(self, logs: dict | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Gives the terminal back; needed where training ends by an exception."""
        if self._bar:
            self._bar.stop()
            self._bar = None
