"""Schedules against the formulas of mmdetection's warm-up and plain numpy."""

from pathlib import Path

import keras
import numpy as np
import pytest

from sepc_tf.config import OptimizerConfig, ScheduleConfig, TrainConfig, load_config
from sepc_tf.errors import ConfigError
from sepc_tf.training.optimizers import make_optimizer
from sepc_tf.training.schedules import WarmupSchedule, make_schedule


def test_warm_up_rises_linearly_from_the_ratio():
    schedule = WarmupSchedule(0.01, warmup_steps=500, warmup_ratio=1 / 3)
    steps = np.array([0, 1, 250, 499, 500, 501])
    expected = 0.01 * np.minimum(1 / 3 + (2 / 3) * steps / 500, 1)
    np.testing.assert_allclose([float(schedule(s)) for s in steps], expected, rtol=1e-6)


def test_a_constant_warm_up_stays_at_the_ratio_and_ends_at_once():
    train = TrainConfig(
        batch_size=16,
        schedule=ScheduleConfig(warmup="constant", warmup_steps=5, milestones=[3], decay=0.1),
    )
    schedule = make_schedule(train, steps_per_epoch=1)
    rates = [float(schedule(step)) for step in range(7)]
    third = 0.01 / 3
    expected = [third, third, third, third / 10, third / 10, 1e-3, 1e-3]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_kind_of_warm_up_without_steps_is_refused():
    train = TrainConfig(schedule=ScheduleConfig(warmup="constant", warmup_steps=0))
    with pytest.raises(ConfigError, match="warmup: 'constant' has no effect on warmup_st"):
        make_schedule(train, steps_per_epoch=10)


def test_steps_divide_at_their_epochs_and_the_rate_follows_the_batch_size():
    train = TrainConfig(
        epochs=12,
        batch_size=4,
        optimizer=OptimizerConfig(learning_rate=0.01, reference_batch_size=16),
        schedule=ScheduleConfig(warmup_steps=0, milestones=[8, 11]),
    )
    schedule = make_schedule(train, steps_per_epoch=10)
    rates = [float(schedule(step)) for step in (0, 79, 80, 109, 110, 119)]
    np.testing.assert_allclose(rates, [2.5e-3, 2.5e-3, 2.5e-4, 2.5e-4, 2.5e-5, 2.5e-5], rtol=1e-6)


@pytest.mark.parametrize("step", [0, 30, 60, 120, 200])
def test_cosine_ends_at_zero(step):
    train = TrainConfig(
        epochs=12, batch_size=16, schedule=ScheduleConfig(type="cosine", warmup_steps=0)
    )
    expected = 0.01 * (1 + np.cos(np.pi * min(step, 120) / 120)) / 2
    actual = float(make_schedule(train, steps_per_epoch=10)(step))
    assert actual == pytest.approx(expected, abs=1e-9)


def test_a_schedule_round_trips_through_its_config():
    schedule = WarmupSchedule(0.01, 5, 0.1, [10, 20], 0.5, warmup="constant")
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert restored.get_config() == schedule.get_config()


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize(("key", "value"), [("milestones", [3]), ("decay", 0.5)])
def test_settings_of_steps_are_refused_elsewhere(kind, key, value):
    schedule = ScheduleConfig(type=kind, **{key: value})
    with pytest.raises(ConfigError, match=f"train.schedule.{key}: .* has no effect on .*{kind}"):
        make_schedule(TrainConfig(schedule=schedule), steps_per_epoch=10)


def test_the_settings_of_every_shipped_config_take_effect():
    paths = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert len(paths) > 30
    for path in paths:
        train = load_config(path).train
        make_schedule(train, steps_per_epoch=10)
        make_optimizer(train.optimizer, 0.1)
        assert train.strategy == "mirrored" or train.cpu_replicas == 1
