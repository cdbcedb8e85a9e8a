"""RetinaNet: losses against numpy, and what its options change."""

import numpy as np
import pytest
import tensorflow as tf
from tiny_detector import random_batch, tiny_detector

from sepc_tf.detectors import RetinaNet
from sepc_tf.errors import ConfigError
from sepc_tf.ops.matching import IGNORED

Options = RetinaNet.Options


def outputs_of(detector, seed=0, size=(64, 96)):
    rng = np.random.default_rng(seed)
    outputs = detector(tf.zeros([4, *size, 3]))
    return {
        name: [tf.constant(rng.normal(0, 0.5, m.shape), tf.float32) for m in maps]
        for name, maps in outputs.items()
    }


def rows(maps, width):
    return np.concatenate([m.numpy().reshape(len(m), -1, width) for m in maps], 1).astype(float)


def numpy_losses(detector, outputs, batch, box_loss):
    """The docstring's formulas in double precision; the matches are the detector's."""
    targets = {name: v.numpy() for name, v in detector.label_anchors(outputs, batch).items()}
    matched, counted = targets["matches"] >= 0, targets["matches"] != IGNORED
    p = 1 / (1 + np.exp(-rows(outputs["classification"], detector.num_classes)))
    positive = targets["classes"][..., None] == np.arange(detector.num_classes)
    q = np.where(positive, p, 1 - p)
    alpha = np.where(positive, detector.focal_alpha, 1 - detector.focal_alpha)
    focal = -alpha * (1 - q) ** detector.focal_gamma * np.log(q)
    normaliser = np.maximum(matched.sum(axis=1), 1).sum()
    codes = rows(outputs["box"], 4)
    box = box_loss(detector, outputs, targets, codes)
    return focal[counted].sum() / normaliser, box[matched].sum() / normaliser


def smooth_l1(detector, outputs, targets, codes):
    d = np.abs(targets["codes"] - codes)
    beta = detector.smooth_l1_beta
    return np.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta).sum(axis=2)


def overlap(detector, outputs, targets, codes):
    anchors = np.concatenate([a.numpy() for a in detector.anchors(outputs)])
    sides, centres = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
    stds = np.array(detector.coder.stds)
    centres = centres + sides * (codes * stds)[..., :2]
    half = sides * np.exp((codes * stds)[..., 2:]) / 2
    got, want = np.concatenate([centres - half, centres + half], -1), targets["boxes"]

    def area(low, high):
        return np.prod(np.maximum(high - low, 0), axis=-1)

    inner = area(np.maximum(got, want)[..., :2], np.minimum(got, want)[..., 2:])
    union = area(got[..., :2], got[..., 2:]) + area(want[..., :2], want[..., 2:]) - inner
    outer = area(np.minimum(got, want)[..., :2], np.maximum(got, want)[..., 2:])
    return inner / union, (outer - union) / outer


def iou(*arguments):
    return -np.log(np.maximum(overlap(*arguments)[0], 1e-6))


def giou(*arguments):
    inside, outside = overlap(*arguments)
    return 1 - inside + outside


@pytest.mark.parametrize("box_loss", [smooth_l1, iou, giou])
def test_losses_are_those_of_the_docstring(box_loss):
    changed = {} if box_loss is smooth_l1 else {"box_loss": box_loss.__name__}
    options = Options(
        box_stds=[0.1, 0.1, 0.2, 0.2],
        positive_iou=0.4,
        negative_iou=0.3,
        focal_alpha=0.4,
        focal_gamma=1.5,
        classification_weight=2.0,
        box_weight=3.0,
        **changed,
    )
    detector = tiny_detector(RetinaNet, options=options)
    batch, outputs = random_batch(), outputs_of(detector)
    assert (detector.label_anchors(outputs, batch)["matches"].numpy() >= 0).sum() > 10
    classification, box = numpy_losses(detector, outputs, batch, box_loss)
    got = detector.compute_losses(outputs, batch)
    np.testing.assert_allclose(got["classification"], 2 * classification, rtol=1e-5)
    np.testing.assert_allclose(got["box"], 3 * box, rtol=1e-4)


def test_options_reach_anchors_matcher_and_head():
    options = Options(positive_iou=0.7, negative_iou=0.2, prior=0.2)
    options.anchors.scales, options.anchors.ratios = [2.0], [1.0]
    detector = tiny_detector(RetinaNet, options=options)
    assert (detector.matcher.positive_iou, detector.matcher.negative_iou) == (0.7, 0.2)
    outputs = detector(tf.zeros([1, 64, 96, 3]))
    assert outputs["box"][0].shape == (1, 8, 12, 4)
    first = detector.anchors(outputs)[0][0].numpy()
    np.testing.assert_array_equal(first, [4 - 8, 4 - 8, 4 + 8, 4 + 8])
    np.testing.assert_allclose(tf.sigmoid(outputs["classification"][0]), 0.2, atol=0.01)


def test_a_beta_without_smooth_l1_is_refused():
    with pytest.raises(ConfigError, match=r"smooth_l1_beta: 0.2 has no effect on box_loss: giou"):
        tiny_detector(RetinaNet, options=Options(box_loss="giou", smooth_l1_beta=0.2))


def test_anchors_in_the_padding_of_a_batch_are_ignored_by_its_own_divisor():
    for divisor, padded in ((32, (64, 96)), (8, (40, 72))):
        detector = tiny_detector(RetinaNet, size_divisor=divisor)
        batch = random_batch()
        batch["image_sizes"] = np.tile(np.int32([[37, 66]]), (4, 1))
        outputs = outputs_of(detector)
        ignored = detector.label_anchors(outputs, batch)["matches"].numpy()[0] == IGNORED
        cells = ignored[: 8 * 12 * 9].reshape(8, 12, 9).all(axis=2)
        height, width = (side // 8 for side in padded)
        assert not cells[:height, :width].any()
        assert cells[height:].all() and cells[:, width:].all()
