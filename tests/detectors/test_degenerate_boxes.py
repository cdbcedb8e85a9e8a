"""A box without area is padding: what is computed is finite, and the same as without it."""

import numpy as np
import pytest
import tensorflow as tf
from tiny_detector import random_batch, tiny_detector

from sepc_tf.detectors import FSAF, FreeAnchor, RetinaNet


def losses_and_gradients(detector, batch):
    rng = np.random.default_rng(1)
    maps = detector(batch["images"])
    outputs = {
        name: [tf.constant(abs(rng.normal(0, 0.5, x.shape)), tf.float32) for x in levels]
        for name, levels in maps.items()
    }
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        losses = detector.compute_losses(outputs, batch)
        total = tf.add_n(list(losses.values()))
    return losses, tf.nest.flatten(tape.gradient(total, outputs))


# Where a clipped box ends up: at the right edge, and inside; "mmdet1" counts the last pixel, so a
# box of zero width ends a pixel before it begins.
@pytest.mark.parametrize("convention, width", [("modern", 0.0), ("mmdet1", -1.0)])
@pytest.mark.parametrize("x1", [17.3, 90.0])
@pytest.mark.parametrize("detector_class", [RetinaNet, FreeAnchor, FSAF])
def test_box_of_zero_width(detector_class, convention, width, x1):
    detector = tiny_detector(detector_class, convention=convention)
    without = random_batch()
    batch = {name: np.copy(value) for name, value in without.items()}
    for image in range(len(batch["boxes"])):
        place = np.flatnonzero(batch["labels"][image] < 0)[0]
        batch["boxes"][image, place] = [x1, 10.0, x1 + width, 40.0]
        batch["labels"][image, place] = 1
    losses, gradients = losses_and_gradients(detector, batch)
    want_losses, want_gradients = losses_and_gradients(detector, without)
    for name, want in want_losses.items():
        assert np.isfinite(losses[name])
        np.testing.assert_allclose(losses[name], want, rtol=1e-6)
    for got, want in zip(gradients, want_gradients):
        np.testing.assert_allclose(got, want, atol=1e-7)


@pytest.mark.parametrize("detector_class", [RetinaNet, FreeAnchor, FSAF])
def test_one_pixel_is_an_object_in_mmdet1(detector_class):
    detector = tiny_detector(detector_class, convention="mmdet1")
    batch = random_batch()
    batch["boxes"][0, 0], batch["labels"][0, 0] = [20.0, 20.0, 20.0, 52.0], 1
    losses, gradients = losses_and_gradients(detector, batch)
    without, _ = losses_and_gradients(detector, random_batch())
    assert all(np.isfinite(x).all() for x in [*losses.values(), *gradients])
    if detector_class is not FSAF:  # a cell's centre is nowhere inside a single column
        assert any(losses[name] != without[name] for name in losses)
