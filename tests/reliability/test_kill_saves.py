"""kill -9 while checkpoints are written and old ones removed."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.reliability

# TensorFlow does nothing in it, so that a process is a fork: hundreds of kills in seconds.
SCRIPT = """
import os, random, shutil, signal, sys, time
import numpy as np
from pathlib import Path
from sepc_tf.training.checkpoints import read_latest, remove_old, write_checkpoint

root, tries = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)

def arrays(step):
    return {"model/kernel": np.full(200_000, step, np.float32), "optimizer/0": np.int64(step)}

def write(directory, first):
    for step in range(first, first + 10_000):
        write_checkpoint(directory / f"step_{step}.npz", arrays(step), {"step": step})
        remove_old(directory, keep=2)

survived, newest, halves, warnings = 0, 0, 0, []
for _ in range(tries):
    child = os.fork()
    if not child:
        write(root, newest + 1)
    time.sleep(random.uniform(0.005, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    saved = read_latest(root, warnings.append)
    halves += len(list(root.glob("*.partial")))
    for path in root.glob("*.partial"):  # as `lock_run_dir` does
        path.unlink()
    if saved is None:
        survived += newest == 0
        continue
    read, meta = saved
    right = all((read[name] == value).all() for name, value in arrays(meta["step"]).items())
    survived += right and meta["step"] >= newest and not warnings
    newest = meta["step"]
print(survived, halves, newest)
"""


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path, tries, figures):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(tries(50))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600 * tries(1))
    assert result.returncode == 0, result.stderr
    survived, halves, newest = map(int, result.stdout.split())
    assert halves and newest, "some kills came in the middle of a file, some saves came through"
    figures("kill -9 while saving", tries(50), survived, f"{halves} in the middle of a file")
