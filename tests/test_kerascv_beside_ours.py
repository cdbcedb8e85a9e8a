"""A stock KerasCV RetinaNet and a detector of ours, built and trained in one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Keras puts `Functional` under the bases of a class when its first functional model is built.
SCRIPT = """
import sys
import keras
import numpy as np
import tensorflow as tf
from tiny_detector import random_batch, tiny_detector
from tiny_kerascv import compile_stock, stock_batch, stock_retinanet
from sepc_tf.detectors import RetinaNet

def ours():
    detector = tiny_detector(RetinaNet, variant="pconv")
    detector.compile(keras.optimizers.SGD(0.01))
    return detector

def train(model):
    if isinstance(model, RetinaNet):
        data = tf.data.Dataset.from_tensors(random_batch())
        losses = model.fit(data, verbose=0).history["loss"]
    else:
        losses = model.fit(*stock_batch(), batch_size=4, verbose=0).history["loss"]
    assert len(losses) == 1 and np.isfinite(losses).all(), losses

build = {"stock": lambda: compile_stock(stock_retinanet()), "ours": ours}
models = [build[name]() for name in sys.argv[1:]]
for model in models:
    before = [np.array(w) for w in model.trainable_weights]
    train(model)
    assert any((np.array(w) != b).any() for w, b in zip(model.trainable_weights, before))
print("trained", *sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", [("stock", "ours"), ("ours", "stock")], ids="-before-".join)
def test_both_train_in_one_process(order):
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *order],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "trained " + " ".join(order)
