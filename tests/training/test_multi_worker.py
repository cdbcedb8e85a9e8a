"""Two workers on one machine train as one run; only the chief writes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sepc_tf.compat import KERAS_3
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.training.checkpoints import step_files

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(KERAS_3, reason="model.fit of Keras 3 does not support several workers")
def test_two_workers_make_one_run(tmp_path):
    data = make_demo_dataset(tmp_path / "data", train_images=16, val_images=4)
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "scripts/train.py", "--config", "configs/demo_sepc_lite.yaml"),
                *("--run-dir", tmp_path / "run", f"data.directory={data}"),
                *("detector.backbone.width=8", "detector.head.filters=16"),
                *("detector.head.num_convs=1", "data.short_side=[64]", "data.test_short_side=64"),
                *("train.epochs=1", "train.batch_size=4", "train.strategy=multi_worker"),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "TF_CONFIG": json.dumps(
                    {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
                ),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n\n".join(outputs)
    lines = [next(line for line in out.splitlines() if "AP50" in line) for out in outputs]
    assert lines[0] == lines[1]
    assert [step for step, _ in step_files(tmp_path / "run/checkpoints")] == [4]
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1


def free_ports(count):
    """Ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
