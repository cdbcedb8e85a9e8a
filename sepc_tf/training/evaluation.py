"""Evaluation after epochs: the history of metrics and the best weights."""

import contextlib
import logging
from pathlib import Path

import keras

from sepc_tf.files import write_json

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
