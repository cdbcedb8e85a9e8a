"""Where a run stands: the global step, which Keras' own counters lose when a run continues."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import keras


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

    Example:
        >>> RunState(steps_per_epoch=100, step=250).epoch
        2
    """

    steps_per_epoch: int
    step: int = 0
    seconds: float = 0.0
    writes: bool = True
    history: list[dict] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.steps_per_epoch


class StepCounter(keras.callbacks.Callback):
    """Advances `RunState`; comes first so that the others see the step just done."""

    def __init__(self, state: RunState) -> None:
        super().__init__()
        self.state = state

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.state.step += 1
        self.state.seconds += time.perf_counter() - self._begun
