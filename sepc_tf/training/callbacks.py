"""What happens around the steps of a training run: progress, logs, checkpoints, evaluation.

All callbacks share one `RunState`, which knows the global step; Keras' own step and epoch counters
restart when a run continues in the middle of an epoch.
"""

import contextlib
import datetime
import logging
import math
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import keras
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sepc_tf.checkpoints.variables import assign_variables, named_variables, read_variables
from sepc_tf.compat import optimizer_variables
from sepc_tf.errors import NonFiniteLossError, Terminated
from sepc_tf.files import write_json
from sepc_tf.training.checkpoints import remove_old, section, write_checkpoint

log = logging.getLogger(__name__)


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        step: optimizer steps done since the start of the run.
        steps_per_epoch: steps of one epoch.
        seconds: wall-clock time of these steps, tracing and waiting for data included, evaluations
            and restarts not.
        history: one dict of metrics per evaluated epoch, as in `history.json`.
        writes: whether this process writes files; of several workers only the chief does.
    """

    steps_per_epoch: int
    step: int = 0
    seconds: float = 0.0
    writes: bool = True
    history: list = field(default_factory=list)

    @property
    def epoch(self):
        """Whole epochs done."""
        return self.step // self.steps_per_epoch

    @property
    def best(self):
        """The evaluated epoch of highest AP, or None."""
        return max(self.history, key=lambda entry: entry["AP"], default=None)


class StepCounter(keras.callbacks.Callback):
    """Advances `RunState`; comes first so that the others see the step just done."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def on_train_batch_begin(self, batch, logs=None):
        self._begun = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.state.step += 1
        self.state.seconds += time.perf_counter() - self._begun


class StopOnNonFinite(keras.callbacks.Callback):
    """Stops training at the first NaN or infinite loss or gradient.

    The train step has already refused the update, so the weights are those before the step.

    Args:
        state: the `RunState`.
        files_of_step: function from a step (0-based) to the file names of its images.
    """

    def __init__(self, state, files_of_step):
        super().__init__()
        self.state = state
        self.files_of_step = files_of_step

    def on_train_batch_end(self, batch, logs=None):
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


class WeightAverage(keras.callbacks.Callback):
    """Exponential moving average of the weights: `a <- d a + (1 - d) w` after every step.

    `d = min(decay, (1 + step) / (10 + step))`, so that the first steps do not linger.
    """

    def __init__(self, state, detector, decay):
        super().__init__()
        self.state = state
        self.decay = decay
        self.weights = named_variables(detector)
        self.averages = {
            name: tf.Variable(variable.numpy(), trainable=False)
            for name, variable in self.weights.items()
        }

    def on_train_batch_end(self, batch, logs=None):
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
    def applied(self):
        """Puts the averages in place of the weights inside a `with` block."""
        trained = read_variables(self.weights)
        assign_variables(self.weights, read_variables(self.averages), "moving averages")
        try:
            yield
        finally:
            assign_variables(self.weights, trained, "trained weights")


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


class Evaluation(keras.callbacks.Callback):
    """Evaluates on the validation set at the end of epochs, keeps the history and the best weights.

    Args:
        state: the `RunState`.
        evaluate: function without arguments that returns a dict of metrics with "AP".
        checkpoints: the `Checkpoints`.
        history_file: JSON file with one entry per evaluated epoch.
        every: epochs between evaluations.
        last_epoch: always evaluated.
    """

    def __init__(self, state, evaluate, checkpoints, history_file, every, last_epoch):
        super().__init__()
        self.state = state
        self.evaluate = evaluate
        self.checkpoints = checkpoints
        self.history_file = Path(history_file)
        self.every = every
        self.last_epoch = last_epoch

    def on_epoch_end(self, epoch, logs=None):
        self.evaluate_if_due()

    def evaluate_if_due(self):
        """Evaluates the epoch just done unless that has happened or it is none to evaluate."""
        epoch, rest = divmod(self.state.step, self.state.steps_per_epoch)
        due = epoch % self.every == 0 or epoch >= self.last_epoch
        done = any(entry["step"] == self.state.step for entry in self.state.history)
        if rest or epoch == 0 or not due or done:
            return
        average = self.checkpoints.average
        with average.applied() if average else contextlib.nullcontext():
            metrics = self.evaluate()
        best = self.state.best
        if best is None or metrics["AP"] > best["AP"]:
            self.checkpoints.save_best(metrics)
        self.state.history.append(
            {"epoch": epoch, "step": self.state.step, "seconds": self.state.seconds, **metrics}
        )
        if self.state.writes:
            write_json(self.history_file, self.state.history)
        log.info(
            "epoch %d: AP %.4f  AP50 %.4f  AP75 %.4f (best AP %.4f)",
            epoch,
            metrics["AP"],
            metrics["AP50"],
            metrics["AP75"],
            self.state.best["AP"],
        )


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


class ProgressBar(keras.callbacks.Callback):
    """One line per epoch: steps, images/s, time left of the run, each loss.

    On a terminal the line is live; in a file or pipe a line is printed every `every` steps.
    """

    def __init__(self, state, total_steps, batch_size, every):
        super().__init__()
        self.state = state
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.every = every
        self.console = Console()
        self._bar = None

    def on_train_begin(self, logs=None):
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

    def on_train_batch_end(self, batch, logs=None):
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

    def on_epoch_end(self, epoch, logs=None):
        self._start = None

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Gives the terminal back; needed where training ends by an exception."""
        if self._bar:
            self._bar.stop()
            self._bar = None


def _prefixed(prefix, arrays):
    return {f"{prefix}/{name}": value for name, value in arrays.items()}
