"""A run killed at any moment and started again ends where an uninterrupted one does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

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
    return process.wait(timeout=120)


def finish(process):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def test_kill_and_sigterm_lose_nothing(tmp_path):
    data = make_demo_dataset(tmp_path / "data", train_images=24, val_images=6)
    finish(start(data, tmp_path / "whole"))

    stopped = tmp_path / "stopped"
    assert interrupt(start(data, stopped), stopped, 2, signal.SIGKILL) == -signal.SIGKILL
    newest = step_files(stopped / "checkpoints")[0][1]
    newest.write_bytes(newest.read_bytes()[:-100])  # as a full disk would leave it
    code = interrupt(
        start(data, stopped), stopped, step_files(stopped / "checkpoints")[0][0] + 2, signal.SIGTERM
    )
    assert code in (143, 0)  # 0: the run was done before the signal was seen
    finish(start(data, stopped))

    (last_step, whole), *_ = step_files(tmp_path / "whole" / "checkpoints")
    (resumed_step, resumed), *_ = step_files(stopped / "checkpoints")
    assert last_step == resumed_step
    whole, resumed = read_checkpoint(whole)[0], read_checkpoint(resumed)[0]
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(resumed[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
