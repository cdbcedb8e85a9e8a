"""Evaluation after epochs: the history of metrics and the best weights."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import keras

from sepc_tf.errors import CheckpointError
from sepc_tf.files import read_json, write_json
from sepc_tf.training.checkpoints import read_meta
from sepc_tf.training.saving import Checkpoints
from sepc_tf.training.state import RunState

log = logging.getLogger(__name__)


class Evaluation(keras.callbacks.Callback):
    """Evaluates on the validation set at the end of epochs, keeps the history and the best weights.

    Args:
        state: the `RunState`.
        evaluate: function without arguments that returns a dict of metrics with "AP".
        checkpoints: the `Checkpoints`.
        history_file: JSON file with one entry per evaluated epoch.
        every: epochs between evaluations.
        last_epoch: always evaluated.

    Attributes:
        best: what `best.npz` holds, as an entry of the history; None where there is none, or its
            AP is not known.

    Example:
        >>> from sepc_tf.training.saving import Checkpoints
        >>> from sepc_tf.training.state import StepCounter
        >>> state = RunState(steps_per_epoch=2)
        >>> checkpoints = Checkpoints(state, detector, "checkpoints", every=1000, keep=2)
        >>> evaluation = Evaluation(
        ...     state, lambda: {"AP": 0.4}, checkpoints, "history.json", 1, last_epoch=12)
        >>> evaluation.restore()
        >>> callbacks = [StepCounter(state), checkpoints, evaluation]  # of detector.fit
    """

    def __init__(
        self,
        state: RunState,
        evaluate: Callable[[], dict],
        checkpoints: Checkpoints,
        history_file: str | Path,
        every: int,
        last_epoch: int,
    ) -> None:
        super().__init__()
        self.state = state
        self.evaluate = evaluate
        self.checkpoints = checkpoints
        self.history_file = Path(history_file)
        self.every = every
        self.last_epoch = last_epoch
        self.best = None

    def restore(self) -> None:
        """Reads what earlier processes evaluated, up to the step that the run continues from.

        A damaged history is set aside, and starts again with what `best.npz` says of itself; a
        damaged `best.npz` is set aside too. The log says so.

        Raises:
            CheckpointError: the history may not be read.
        """
        best_file = self.checkpoints.directory / "best.npz"
        try:
            self.best = self._entry(read_meta(best_file)) if best_file.is_file() else None
        except CheckpointError as error:
            log.warning("%s; the next epoch that is evaluated gives a new one", error)
            self._set_aside(best_file)
        try:
            history = _read_history(self.history_file)
        except OSError as error:
            raise CheckpointError(f"{self.history_file} cannot be read: {error}") from error
        except ValueError as error:
            log.warning(
                "%s cannot be read (%s); it starts again with the best epoch as best.npz has it",
                self.history_file,
                error,
            )
            self._set_aside(self.history_file)
            history = [self.best] if self.best else []
        self.state.history = [entry for entry in history if entry["step"] <= self.state.step]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.evaluate_if_due()

    def evaluate_if_due(self) -> None:
        """Evaluates the epoch just done unless that has happened or it is none to evaluate."""
        epoch, rest = divmod(self.state.step, self.state.steps_per_epoch)
        due = epoch % self.every == 0 or epoch >= self.last_epoch
        done = any(entry["step"] == self.state.step for entry in self.state.history)
        if rest or epoch == 0 or not due or done:
            return
        average = self.checkpoints.average
        with average.applied() if average else contextlib.nullcontext():
            metrics = self.evaluate()
        entry = {"epoch": epoch, "step": self.state.step, "seconds": self.state.seconds, **metrics}
        if self.best is None or metrics["AP"] > self.best["AP"]:
            self.checkpoints.save_best(metrics)
            self.best = entry
        self.state.history.append(entry)
        if self.state.writes:
            write_json(self.history_file, self.state.history)
        log.info(
            "epoch %d: AP %.4f  AP50 %.4f  AP75 %.4f (best AP %.4f)",
            epoch,
            metrics["AP"],
            metrics["AP50"],
            metrics["AP75"],
            self.best["AP"],
        )

    def _entry(self, meta):
        if "AP" not in meta.get("metrics", {}):  # converted from another framework
            return None
        step = meta["step"]
        return {
            "epoch": step // self.state.steps_per_epoch,
            "step": step,
            "seconds": meta.get("seconds", self.state.seconds),
            **meta["metrics"],
        }

    def _set_aside(self, path):
        if self.state.writes:
            os.replace(path, path.with_name(path.name + ".damaged"))


def _read_history(path):
    """The entries of a history file; none where there is no file."""
    if not path.is_file():
        return []
    history = read_json(path)
    keys = ("epoch", "step", "seconds", "AP")
    if not isinstance(history, list) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), int | float) for key in keys)
        for entry in history
    ):
        raise ValueError(f"expected a list of entries with the numbers {', '.join(keys)}")
    return history
