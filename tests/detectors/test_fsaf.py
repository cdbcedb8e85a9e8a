"""FSAF's level selection by hand, in the modern convention."""

import numpy as np
import pytest
import tensorflow as tf
from tiny_detector import random_batch, tiny_detector

from sepc_tf.detectors import FSAF
from sepc_tf.detectors.heads import PredictionHead


@pytest.fixture(scope="module")
def detector():
    return tiny_detector(FSAF)


def one_object(detector):
    """Outputs for 64 x 64 images, and a batch with one object in the first image of two."""
    sizes = [8, 4, 2, 1, 1]
    outputs = {
        "classification": [tf.fill([2, s, s, 3], -2.0) for s in sizes],
        "box": [tf.ones([2, s, s, 4]) for s in sizes],
    }
    boxes = -np.ones((2, 2, 4), np.float32)
    labels = -np.ones((2, 2), np.int32)
    boxes[0, 0], labels[0, 0] = [8, 8, 56, 56], 1
    return outputs, {"boxes": boxes, "labels": labels, "image_sizes": np.int32([[64, 64]] * 2)}


def test_the_level_that_predicts_best_is_chosen(detector):
    outputs, batch = one_object(detector)
    # On level 1 (stride 16) the cells around the middle predict the box exactly.
    targets = detector.label_anchors(outputs, batch)
    codes = targets["codes"][:, 64:80]
    outputs["box"][1] = tf.reshape(codes, [2, 4, 4, 4])
    targets = detector.label_anchors(outputs, batch)
    focal, iou_loss = detector.cell_losses(outputs, targets)
    selected = detector.select_levels(outputs, targets, focal, iou_loss, num_boxes=2)
    assert selected["levels"][0, 0] == 1
    kept = np.flatnonzero(selected["kept"][0])
    # The shrunk box [27.2, 36.8]^2 reaches the four cells of stride 16 around (32, 32).
    np.testing.assert_array_equal(kept - 64, [5, 6, 9, 10])
    assert not selected["kept"][1].numpy().any()
    np.testing.assert_allclose(iou_loss.numpy()[0, kept], 0, atol=1e-5)

    # 4 kept cells; of the other levels' cells only the focal loss of class 1 is left out.
    matched = targets["matches"].numpy() >= 0
    dropped = matched & ~selected["kept"].numpy()
    focal = focal.numpy() * (targets["matches"].numpy() != -2)[..., None]
    want = focal.sum() - focal[dropped][:, 1].sum()
    losses = detector.compute_losses(outputs, batch)
    np.testing.assert_allclose(losses["classification"], want / 4, rtol=1e-5)
    np.testing.assert_allclose(losses["box"], 0, atol=1e-5)


def test_mean_losses_are_means_over_the_cells(detector):
    batch = random_batch()
    outputs = detector(batch["images"])
    targets = detector.label_anchors(outputs, batch)
    focal, iou_loss = detector.cell_losses(outputs, targets)
    got = detector.select_levels(outputs, targets, focal, iou_loss, batch["boxes"].shape[1])[
        "mean_losses"
    ].numpy()
    cell_loss = focal.numpy().sum(-1) + iou_loss.numpy()
    start = 0
    for level, anchors in enumerate(detector.anchors(outputs)):
        rows = slice(start, start + len(anchors))
        start += len(anchors)
        for image, box in np.ndindex(*batch["labels"].shape):
            mine = targets["matches"].numpy()[image, rows] == box
            want = cell_loss[image, rows][mine].mean() if mine.any() else 1e6
            np.testing.assert_allclose(got[image, box, level], want, rtol=1e-5)


def test_head_must_give_distances(detector):
    parts = detector.get_config()
    config = FSAF.from_config(parts)  # the parts themselves are sound
    with pytest.raises(ValueError, match=r'box_activation must be "relu".*got None'):
        FSAF(
            config.backbone,
            config.necks,
            config.towers,
            PredictionHead(3, 1),
            anchor_generator=config.anchor_generator,
            coder=config.coder,
            matcher=config.matcher,
        )
