"""When a run is saved: every so many steps, at each epoch's end, and on SIGTERM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from sepc_tf.checkpoints.variables import (
    assign_variables,
    named_variables,
    non_finite,
    read_variables,
)
from sepc_tf.compat import optimizer_variables
from sepc_tf.errors import NonFiniteLossError
from sepc_tf.training.checkpoints import remove_old, section, write_checkpoint
from sepc_tf.training.state import RunState
from sepc_tf.training.termination import Termination
from sepc_tf.training.weight_average import WeightAverage


class Checkpoints(keras.callbacks.Callback):
    """Saves the whole state every so many steps, at each epoch's end, and on SIGTERM.

    Args:
        state: the `RunState`.
        detector: the detector, compiled.
        directory: where `step_<N>.npz`, `best.npz` are written.
        every: steps between checkpoints.
        keep: step checkpoints kept.
        average: a `WeightAverage` or None.
        termination: the `Termination` that listens to SIGTERM.

    Example:
        >>> from sepc_tf.training.state import StepCounter
        >>> state = RunState(steps_per_epoch=2)
        >>> checkpoints = Checkpoints(state, detector, "runs/demo/checkpoints", 1000, keep=2)
        >>> callbacks = [StepCounter(state), checkpoints]  # of detector.fit
    """

    def __init__(
        self,
        state: RunState,
        detector: keras.Model,
        directory: str | Path,
        every: int,
        keep: int,
        average: WeightAverage | None = None,
        termination: Termination | None = None,
    ) -> None:
        super().__init__()
        self.state = state
        self.detector = detector
        self.directory = Path(directory)
        self.every = every
        self.keep = keep
        self.average = average
        self.termination = termination or Termination()
        self._saved_step = state.step
        self.termination.unsaved = lambda: self._saved_step != self.state.step
        self.termination.saved = self._saved

    def restore(self, arrays: dict[str, np.ndarray], meta: Any, source: str | Path) -> None:
        """Puts a checkpoint's state back: weights, optimizer, averages, step.

        Raises:
            CheckpointError: it is of another detector or optimizer; lists every difference.
        """
        assign_variables(named_variables(self.detector), section(arrays, "model"), source)
        assign_variables(self._optimizer_variables(), section(arrays, "optimizer"), source)
        if self.average:
            assign_variables(self.average.averages, section(arrays, "ema"), source)
        self.state.step = self._saved_step = meta["step"]
        self.state.seconds = meta["seconds"]

    def save(self) -> None:
        """Writes `step_<N>.npz` and removes the oldest ones, then leaves if SIGTERM has come.

        Raises:
            OutputError: the file cannot be written; the checkpoint before it is still there.
            NonFiniteLossError: the last update made a weight NaN or infinite; nothing is written.
            Terminated: SIGTERM has come.
        """
        if self._saved_step != self.state.step and self.state.writes:
            arrays = _prefixed("model", read_variables(named_variables(self.detector)))
            arrays |= _prefixed("optimizer", read_variables(self._optimizer_variables()))
            if self.average:
                arrays |= _prefixed("ema", read_variables(self.average.averages))
            if names := non_finite(arrays):
                raise NonFiniteLossError(
                    f"step {self.state.step}: {names[0]} became NaN or infinite and nothing was "
                    "saved; lower train.optimizer.learning_rate and start again with the same run "
                    "directory, or another"
                )
            path = self.directory / f"step_{self.state.step:08d}.npz"
            write_checkpoint(path, arrays, {"step": self.state.step, "seconds": self.state.seconds})
            remove_old(self.directory, self.keep)
        self._saved_step = self.state.step
        self.termination.check()

    def save_best(self, metrics: dict[str, float]) -> None:
        """Writes `best.npz`: the weights as evaluated (the averages where there are any)."""
        if not self.state.writes:
            return
        variables = self.average.averages if self.average else named_variables(self.detector)
        meta = {"step": self.state.step, "seconds": self.state.seconds, "metrics": metrics}
        arrays = _prefixed("model", read_variables(variables))
        write_checkpoint(self.directory / "best.npz", arrays, meta)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self.termination.requested or self.state.step % self.every == 0:
            self.save()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.save()

    def _saved(self):
        if self._saved_step == 0:
            return "no step was done"
        return f"saved step {self._saved_step} in {self.directory}"

    def _optimizer_variables(self):
        variables = optimizer_variables(self.detector.optimizer)
        return {str(index): variable for index, variable in enumerate(variables)}


def _prefixed(prefix, arrays):
    return {f"{prefix}/{name}": value for name, value in arrays.items()}
