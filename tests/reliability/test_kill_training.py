"""kill -9 in whole trainings, and a second training that wants the same directory."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sepc_tf.config import config_to_yaml, load_config
from sepc_tf.errors import ConfigError
from sepc_tf.files import read_json
from sepc_tf.train import train
from sepc_tf.training.checkpoints import read_checkpoint, step_files

pytestmark = pytest.mark.reliability

ROOT = Path(__file__).parents[2]


def start(config_file, run_dir):
    command = [sys.executable, "-m", "sepc_tf", "train", "--config", str(config_file)]
    return subprocess.Popen(
        [*command, "--run-dir", str(run_dir)],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_saved(run_dir):
    return max((step for step, _ in step_files(run_dir / "checkpoints")), default=0)


def wait_for_step(process, run_dir, step):
    while steps_saved(run_dir) < step and process.poll() is None:
        time.sleep(0.005)


def assert_same_run(run_dir, whole):
    (step, path), *_ = step_files(run_dir / "checkpoints")
    assert step == steps_saved(whole)
    for name in (path.name, "best.npz"):
        ours = read_checkpoint(run_dir / "checkpoints" / name)[0]
        theirs = read_checkpoint(whole / "checkpoints" / name)[0]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            np.testing.assert_array_equal(ours[key], value, err_msg=f"{name} {key}")
    first, second = (read_json(folder / "history.json") for folder in (run_dir, whole))
    for entry in (*first, *second):
        del entry["seconds"]
    assert first == second


def test_kills_at_random_moments_end_bit_equal(whole, config, tmp_path, tries, figures):
    rng = random.Random(0)
    last = steps_saved(whole)
    count, equal, refused, moments = tries(1), 0, 0, []
    run_dir = tmp_path / "0"
    for number in range(count):
        process = start(whole / "config.yaml", run_dir)
        while not (run_dir / "environment.json").is_file() and process.poll() is None:
            time.sleep(0.005)
        if process.poll() is None and not refused:
            with pytest.raises(ConfigError, match="another process is training in run directory"):
                train(config, run_dir)
            refused += 1
        wait_for_step(process, run_dir, rng.randint(steps_saved(run_dir), last))
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (0, -9), errors
        ended = "" if process.returncode else " (had ended)"
        moments.append(f"{steps_saved(run_dir)}{ended}")
        if process.returncode == 0 or number == count - 1 or rng.random() < 0.3:
            train(config, run_dir)
            assert_same_run(run_dir, whole)
            equal = number + 1
            run_dir = tmp_path / str(number + 1)
    figures("kill -9 while training, then bit-equal", count, equal, f"at step {', '.join(moments)}")
    figures("a second training of one directory refused", 1, refused)


# Longer trainings, killed while they evaluate too -------------------------------------------------

STEPS_PER_EPOCH, EPOCHS, EVALUATE_EVERY = 2, 15, 3
STEPS = STEPS_PER_EPOCH * EPOCHS
EVALUATED = STEPS_PER_EPOCH * EVALUATE_EVERY  # after so many steps, again and again

# Forked before TensorFlow computes anything, a child needs no start of its own.
LONG = """
import os, signal, sys, time
from pathlib import Path
from sepc_tf.config import load_config
from sepc_tf.train import train
from sepc_tf.training.checkpoints import step_files

config = load_config(sys.argv[1])
for line in sys.stdin:
    run_dir, step, delay = line.split()
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr
        train(config, run_dir)
        os._exit(0)
    ended = 0
    checkpoints = Path(run_dir) / "checkpoints"
    while not ended and not any(saved >= int(step) for saved, _ in step_files(checkpoints)):
        time.sleep(0.005)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(float(delay))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def test_many_kills_of_thirty_steps_end_bit_equal(config, tmp_path, tries, figures):
    config_file = tmp_path / "config.yaml"
    config_file.write_text(config_to_yaml(config))
    overrides = [f"train.epochs={EPOCHS}", f"train.evaluate_every={EVALUATE_EVERY}"]
    config_file.write_text(config_to_yaml(load_config(config_file, overrides)))
    process = subprocess.Popen(
        [sys.executable, "-c", LONG, str(config_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ends(run_dir, step=STEPS + 1, delay=0.0):
        """Trains, kills at `delay` seconds after a step is saved; the exit status."""
        process.stdin.write(f"{run_dir} {step} {delay}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    rng = random.Random(0)
    whole, run_dir = tmp_path / "whole", tmp_path / "killed"
    assert ends(whole) == 0 and steps_saved(whole) == STEPS
    count, moments, evaluating = tries(1), [], 0
    for number in range(count):
        done = steps_saved(run_dir)
        if number % 2:  # what follows this step is an evaluation
            step = min(EVALUATED * (done // EVALUATED + 1), STEPS)
        else:
            step = rng.randint(done, min(done + 8, STEPS))
        status = ends(run_dir, step, rng.uniform(0, 0.3))
        assert status in (0, -9)
        moments.append(f"{steps_saved(run_dir)}{'' if status else ' (had ended)'}")
        history = run_dir / "history.json"
        written = read_json(history)[-1]["step"] if history.is_file() else 0
        evaluating += status != 0 and steps_saved(run_dir) - written >= EVALUATED
        if steps_saved(run_dir) == STEPS and number < count - 1:
            assert ends(run_dir) == 0
            assert_same_run(run_dir, whole)
            run_dir = tmp_path / f"killed_{number}"
    assert ends(run_dir) == 0
    assert_same_run(run_dir, whole)
    process.stdin.close()
    process.wait()
    figures(
        f"kill -9 within {STEPS} steps, then bit-equal",
        count,
        count,
        f"at step {', '.join(moments)}; {evaluating} while evaluating",
    )
