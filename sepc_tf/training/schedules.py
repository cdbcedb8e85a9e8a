"""Learning-rate schedules as functions of the step: a warm-up, then steps or cosine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.settings import check_unused
from sepc_tf.training.config import TrainConfig


@keras.saving.register_keras_serializable(package="sepc_tf")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A warm-up followed by step decay, cosine decay, or a constant rate.

    With peak rate `r`, warm-up of `W` steps from the ratio `q`, and step `t`:

        t < W:   r(t) * (1 - (1 - t / W) (1 - q)), or r(t) * q all the while ("constant")
        t >= W:  r(t)
        steps:   r(t) = r * decay ** (number of boundaries <= t)
        cosine:  r(t) = r * (1 + cos(pi t / total_steps)) / 2

    The warm-ups are those of mmdetection's configs: linear with 500 steps and q = 1/3 is what the
    paper's authors train with, constant with the same numbers is FCOS'.

    Args:
        peak: learning rate after the warm-up.
        warmup_steps: `W`; 0 for none.
        warmup_ratio: `q`.
        warmup: "linear" or "constant".
        boundaries: steps at which the rate is multiplied by `decay`.
        decay: factor at each boundary.
        cosine_steps: total steps of a cosine to zero; None for step decay.

    Example:
        >>> schedule = WarmupSchedule(0.01, warmup_steps=500, boundaries=[8000, 11000])
        >>> [round(float(schedule(step)), 6) for step in (500, 8000, 11000)]
        [0.01, 0.001, 0.0001]
    """

    def __init__(
        self,
        peak: float,
        warmup_steps: int = 0,
        warmup_ratio: float = 1 / 3,
        boundaries: Sequence[int] = (),
        decay: float = 0.1,
        cosine_steps: int | None = None,
        warmup: str = "linear",
    ) -> None:
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio
        self.boundaries = list(boundaries)
        self.decay = decay
        self.cosine_steps = cosine_steps
        self.warmup = warmup

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.peak, tf.float32)
        if self.cosine_steps is not None:
            progress = tf.minimum(step / float(self.cosine_steps), 1.0)
            rate *= 0.5 * (1.0 + tf.cos(progress * 3.14159265358979))
        for boundary in self.boundaries:
            rate *= tf.where(step >= float(boundary), self.decay, 1.0)
        if self.warmup_steps:
            remaining = tf.maximum(1.0 - step / float(self.warmup_steps), 0.0)
            if self.warmup == "constant":
                remaining = tf.math.ceil(remaining)
            rate *= 1.0 - remaining * (1.0 - self.warmup_ratio)
        return rate

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "warmup_ratio": self.warmup_ratio,
            "boundaries": self.boundaries,
            "decay": self.decay,
            "cosine_steps": self.cosine_steps,
            "warmup": self.warmup,
        }


def make_schedule(train: TrainConfig, steps_per_epoch: int) -> WarmupSchedule:
    """Builds the schedule of a `TrainConfig`; the rate scales linearly with the batch size.

    Args:
        train: a `sepc_tf.config.TrainConfig`.
        steps_per_epoch: optimizer steps of one epoch.

    Returns:
        A `WarmupSchedule`.

    Raises:
        ConfigError: milestones or decay are set for another type of schedule than "steps", or a
            kind of warm-up without steps of it.

    Example:
        >>> schedule = make_schedule(TrainConfig(epochs=12, batch_size=16), steps_per_epoch=7330)
        >>> round(float(schedule(500)), 6)
        0.01
    """
    optimizer, schedule = train.optimizer, train.schedule
    if schedule.type != "steps":
        reason = f"train.schedule.type: {schedule.type}"
        check_unused(schedule, ("milestones", "decay"), "train.schedule.", reason)
    if not schedule.warmup_steps:
        check_unused(schedule, ("warmup",), "train.schedule.", "warmup_steps: 0")
    return WarmupSchedule(
        peak=optimizer.learning_rate * train.batch_size / optimizer.reference_batch_size,
        warmup_steps=schedule.warmup_steps,
        warmup_ratio=schedule.warmup_ratio,
        warmup=schedule.warmup,
        boundaries=[epoch * steps_per_epoch for epoch in schedule.milestones]
        if schedule.type == "steps"
        else [],
        decay=schedule.decay,
        cosine_steps=train.epochs * steps_per_epoch if schedule.type == "cosine" else None,
    )
