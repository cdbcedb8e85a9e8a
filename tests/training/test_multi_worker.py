"""Two workers on one machine train as one run; only the chief writes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.training.checkpoints import read_checkpoint, step_files

pytestmark = pytest.mark.same_on_both_stacks

ROOT = Path(__file__).parents[2]


def test_two_workers_train_as_two_replicas_of_one(tmp_path):
    data = make_demo_dataset(tmp_path / "data", train_images=16, val_images=4)
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]

    def start(run_dir, *settings, **environment):
        return subprocess.Popen(
            [
                *(sys.executable, "scripts/train.py", "--config", "configs/demo_sepc_lite.yaml"),
                *("--run-dir", tmp_path / run_dir, f"data.directory={data}"),
                *("detector.backbone.width=8", "detector.head.filters=16"),
                *("detector.head.num_convs=1", "data.short_side=[64]", "data.test_short_side=64"),
                *("train.epochs=1", "train.batch_size=4", *settings),
            ],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    clusters = [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        for index in range(2)
    ]
    processes = [
        start("run", "train.strategy=multi_worker", "train.cpu_replicas=1", TF_CONFIG=text)
        for text in clusters
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n\n".join(outputs)
    lines = [next(line for line in out.splitlines() if "AP50" in line) for out in outputs]
    assert lines[0] == lines[1]
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1

    process = start("mirrored", "train.strategy=mirrored", "train.cpu_replicas=2")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    checkpoints = [step_files(tmp_path / run / "checkpoints") for run in ("run", "mirrored")]
    assert [step for files in checkpoints for step, _ in files] == [4, 4]
    ours, theirs = (read_checkpoint(files[0][1])[0] for files in checkpoints)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def free_ports(count):
    """Ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
