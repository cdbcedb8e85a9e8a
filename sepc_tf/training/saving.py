"""When a run is saved: every so many steps, at each epoch's end, and on SIGTERM."""

import contextlib
import signal
from pathlib import Path

import keras

from sepc_tf.checkpoints.variables import assign_variables, named_variables, read_variables
from sepc_tf.compat import optimizer_variables
from sepc_tf.errors import Terminated
from sepc_tf.training.checkpoints import remove_old, section, write_checkpoint


class Checkpoints(keras.callbacks.Callback):
    """Saves the whole state every so many steps, at each epoch's end, and on SIGTERM.

    Args:
        state: the `RunState`.
        detector: the detector, compiled.
        directory: where `step_<N>.npz`, `best.npz` are written.
        every: steps between checkpoints.
        keep: step checkpoints kept.
        average: a `WeightAverage` or None.
    """

    def __init__(self, state, detector, directory, every, keep, average=None):
        super().__init__()
        self.state = state
        self.detector = detector
        self.directory = Path(directory)
        self.every = every
        self.keep = keep
        self.average = average
        self.terminated = False
        self._saved_step = state.step

    def restore(self, arrays, meta, source):
        """Puts a checkpoint's state back: weights, optimizer, averages, step."""
        assign_variables(named_variables(self.detector), section(arrays, "model"), source)
        assign_variables(self._optimizer_variables(), section(arrays, "optimizer"), source)
        if self.average:
            assign_variables(self.average.averages, section(arrays, "ema"), source)
        self.state.step = self._saved_step = meta["step"]
        self.state.seconds = meta["seconds"]

    def save(self):
        """Writes `step_<N>.npz` and removes the oldest ones."""
        if self._saved_step == self.state.step or not self.state.writes:
            return
        arrays = _prefixed("model", read_variables(named_variables(self.detector)))
        arrays |= _prefixed("optimizer", read_variables(self._optimizer_variables()))
        if self.average:
            arrays |= _prefixed("ema", read_variables(self.average.averages))
        path = self.directory / f"step_{self.state.step:08d}.npz"
        write_checkpoint(path, arrays, {"step": self.state.step, "seconds": self.state.seconds})
        remove_old(self.directory, self.keep)
        self._saved_step = self.state.step

    def save_best(self, metrics):
        """Writes `best.npz`: the weights as evaluated (the averages where there are any)."""
        if not self.state.writes:
            return
        variables = self.average.averages if self.average else named_variables(self.detector)
        arrays = _prefixed("model", read_variables(variables))
        write_checkpoint(
            self.directory / "best.npz", arrays, {"step": self.state.step, "metrics": metrics}
        )

    def on_train_begin(self, logs=None):
        with contextlib.suppress(ValueError):  # signals reach only the main thread
            signal.signal(signal.SIGTERM, self._terminate)

    def on_train_end(self, logs=None):
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_batch_end(self, batch, logs=None):
        if self.terminated:
            self.save()
            self.model.stop_training = True
            # Leaves this batch loop at once: stop_training is read only when an epoch ends.
            raise Terminated(f"SIGTERM: saved step {self.state.step} in {self.directory}")
        if self.state.step % self.every == 0:
            self.save()

    def on_epoch_end(self, epoch, logs=None):
        self.save()

    def _terminate(self, signal_number, frame):
        self.terminated = True

    def _optimizer_variables(self):
        variables = optimizer_variables(self.detector.optimizer)
        return {str(index): variable for index, variable in enumerate(variables)}


def _prefixed(prefix, arrays):
    return {f"{prefix}/{name}": value for name, value in arrays.items()}
