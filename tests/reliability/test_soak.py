"""Many steps of a tiny detector, saved every few: memory and file handles do not grow."""

import contextlib
import os

import keras
import pytest

from sepc_tf.data.sources import load_split, training_pipeline
from sepc_tf.training.optimizers import make_optimizer
from sepc_tf.training.saving import Checkpoints
from sepc_tf.training.schedules import make_schedule
from sepc_tf.training.state import RunState, StepCounter
from sepc_tf.zoo import build_detector

pytestmark = pytest.mark.reliability

ALLOWED_GROWTH = 10  # MB, between the third and the last quarter of the steps


def resident_megabytes():
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files():
    """Their names; the folder's own listing and what is closed meanwhile are left out."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/self/fd/{number}"))
    return names


class Watch(keras.callbacks.Callback):
    """Notes (resident memory in MB, names of the open files) after every 5 steps."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def on_train_batch_end(self, batch, logs=None):
        if batch % 5 == 4:
            self.notes.append((resident_megabytes(), open_files()))


def test_memory_and_files_do_not_grow(config, tmp_path, tries, figures):
    steps = tries(100)
    dataset = load_split(config.data, "train")
    pipeline = training_pipeline(dataset, config)
    detector = build_detector(config.detector, dataset.num_classes)
    schedule = make_schedule(config.train, pipeline.steps_per_epoch)
    detector.compile(optimizer=make_optimizer(config.train.optimizer, schedule), clip_norm=35.0)
    state, watch = RunState(pipeline.steps_per_epoch), Watch()
    checkpoints = Checkpoints(state, detector, tmp_path, every=20, keep=2)
    detector.fit(
        pipeline.training_batches(),
        steps_per_epoch=steps,
        callbacks=[StepCounter(state), checkpoints, watch],
        shuffle=False,
        verbose=0,
    )
    quarter = len(watch.notes) // 4
    third, last = watch.notes[2 * quarter : 3 * quarter], watch.notes[3 * quarter :]
    grown = max(memory for memory, _ in last) - max(memory for memory, _ in third)
    # Threads of the pipeline have an image open for a moment: what stays open is always there.
    kept_before, kept = (min(len(names) for _, names in notes) for notes in (third, last))
    more = kept - kept_before
    assert grown < ALLOWED_GROWTH and more <= 0, (grown, more)
    figures("steps without growth", steps, steps, f"{grown:+.1f} MB, {more:+d} open files")
