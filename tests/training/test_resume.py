"""A run killed at any moment and started again ends where an uninterrupted one does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sepc_tf.compat import KERAS_3
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.training.checkpoints import read_checkpoint, step_files

ROOT = Path(__file__).parents[2]

OVERRIDES = [
    "detector.backbone.width=8",
    "detector.head.filters=16",
    "detector.head.num_convs=1",
    "data.short_side=[64,96]",
    "data.flip_probability=0.5",
    "data.long_side=128",
    "data.test_short_side=64",
    "train.epochs=2",
    "train.batch_size=4",
    "train.cpu_replicas=2",
    "train.deterministic=true",
    "train.ema_decay=0.9",
    "train.schedule.warmup_steps=4",
    "train.checkpoint_every=2",
    "train.keep_checkpoints=3",
    "train.evaluate_every=2",
]


def start(data, run_dir):
    command = [sys.executable, "scripts/train.py", "--config", "configs/demo_sepc_lite.yaml"]
    return subprocess.Popen(
        [*command, "--run-dir", str(run_dir), f"data.directory={data}", *OVERRIDES],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def interrupt(process, run_dir, step, signal_number):
    """Sends a signal as soon as a checkpoint of `step` or later is there."""
    while not any(saved >= step for saved, _ in step_files(run_dir / "checkpoints")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


@pytest.mark.skipif(KERAS_3, reason="the default stack's kills are those of tests/reliability")
def test_kill_and_sigterm_lose_nothing(tmp_path):
    data = make_demo_dataset(tmp_path / "data", train_images=24, val_images=6)
    finish(start(data, tmp_path / "whole"))

    # Before the first step: nothing to save, and it does not wait for one.
    stopped = tmp_path / "stopped"
    process = start(data, stopped)
    while not (stopped / "environment.json").is_file():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 143 and "SIGTERM: no step was done" in output, output
    assert step_files(stopped / "checkpoints") == []

    code, _ = interrupt(start(data, stopped), stopped, 2, signal.SIGKILL)
    assert code == -signal.SIGKILL
    newest = step_files(stopped / "checkpoints")[0][1]
    newest.write_bytes(newest.read_bytes()[:-100])  # as a full disk would leave it

    # Steps are left when the checkpoint after the next is there: 143 and nothing else.
    at = step_files(stopped / "checkpoints")[0][0] + 2
    code, output = interrupt(start(data, stopped), stopped, at, signal.SIGTERM)
    step = step_files(stopped / "checkpoints")[0][0]
    assert code == 143 and f"SIGTERM: saved step {step}" in output, output
    finish(start(data, stopped))

    (last_step, whole), *_ = step_files(tmp_path / "whole" / "checkpoints")
    (resumed_step, resumed), *_ = step_files(stopped / "checkpoints")
    assert step < last_step == resumed_step
    whole, resumed = read_checkpoint(whole)[0], read_checkpoint(resumed)[0]
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
