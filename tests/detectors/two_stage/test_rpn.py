"""The RPN: which anchors are learnt from, losses, proposals, in both conventions."""

import numpy as np
import pytest
import tensorflow as tf
from tiny_detector import TinyBackbone

from sepc_tf.detectors.anchor_based import AnchorOptions
from sepc_tf.detectors.two_stage.rpn import RPN, ProposalOptions, RPNOptions
from sepc_tf.necks import FPN
from sepc_tf.ops.boxes import pairwise_iou

SIZES = [(8, 12), (4, 6)]
IMAGE_SIZES = tf.constant([[64, 96], [50, 70]])


def rpn(convention="modern"):
    options = RPNOptions(anchors=AnchorOptions(scales=[2.0], strides=[8, 16, 32]), sampled=8)
    return RPN.from_parts(
        TinyBackbone(name="backbone"), FPN(8, 3, name="fpn"), 8, convention, options, name="rpn"
    )


def raw_outputs(seed=0):
    rng = np.random.default_rng(seed)
    sizes = [*SIZES, (2, 3)]
    return {
        name: [tf.constant(rng.normal(size=(2, *s, n)) / 2, tf.float32) for s in sizes]
        for name, n in (("classification", 3), ("box", 12))
    }


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_only_anchors_inside_their_image_are_learnt_from(convention):
    detector, outputs = rpn(convention), raw_outputs()
    anchors = np.concatenate([x.numpy() for x in detector.anchors(outputs)])
    last = 0 if convention == "modern" else 1
    for flags, (height, width) in zip(
        detector.learnable_anchors(outputs, IMAGE_SIZES).numpy(), IMAGE_SIZES.numpy()
    ):
        inside = (anchors[:, :2] >= 0).all(axis=1)
        inside &= (anchors[:, 2] + last <= width) & (anchors[:, 3] + last <= height)
        np.testing.assert_array_equal(flags, inside)
        assert 0 < inside.sum() < len(inside)


def test_losses_of_a_sample():
    detector, outputs = rpn(), raw_outputs()
    batch = {
        "boxes": tf.constant([[[16.0, 16, 34, 30]], [[-1.0] * 4]]),
        "labels": tf.constant([[2], [-1]]),  # any class is an object
        "image_sizes": IMAGE_SIZES,
    }
    targets = detector.label_anchors(outputs, batch)
    matches = targets["matches"].numpy()
    positive, negative = np.flatnonzero(matches[0] >= 0), np.flatnonzero(matches[0] == -1)
    assert len(positive) and set(targets["classes"].numpy().ravel()) == {-1, 0}
    other = np.flatnonzero(matches[1] == -1)
    rows = np.array([[positive[0], *negative[:3]], [*other[:2], 0, 0]])
    present = np.array([[True] * 4, [True, True, False, False]])
    losses = detector.losses_of_sample(outputs, targets, rows, present)
    logits, codes = (np.concatenate(x, axis=1) for x in detector.flatten_outputs(outputs))
    entropy = sum(
        np.log1p(np.exp(-logits[n, rows[n, i], 0] * (1 if (n, i) == (0, 0) else -1)))
        for n, i in np.argwhere(present)
    )
    d = np.abs(codes[0, positive[0]] - targets["codes"][0, positive[0]].numpy())
    box = np.where(d < 1 / 9, d * d * 9 / 2, d - 1 / 18).sum()
    # One positive and three negatives; of the second image a positive counts as well.
    np.testing.assert_allclose(losses["rpn_classification"], entropy / 7, rtol=1e-5)
    np.testing.assert_allclose(losses["rpn_box"], box / 7, rtol=1e-5)


def suppressed(boxes, scores, iou, convention):
    kept, ious = [], pairwise_iou(boxes, boxes, convention).numpy()
    for i in np.argsort(-scores, kind="stable"):
        if all(ious[i, j] <= iou for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_proposals_equal_a_loop(convention):
    detector, outputs = rpn(convention), raw_outputs()
    options = ProposalOptions(nms_pre=100, nms_iou=0.5, nms_post=9, max_proposals=20, min_size=6)
    boxes, scores, present = (x.numpy() for x in detector.proposals(outputs, IMAGE_SIZES, options))
    assert boxes.shape == (2, 20, 4) and present.sum(axis=1).tolist() == [20, 20]
    last = 0 if convention == "modern" else 1
    logits, codes = detector.flatten_outputs(outputs)
    for n, (height, width) in enumerate(IMAGE_SIZES.numpy()):
        rows = []
        for anchors, level_logits, level_codes in zip(detector.anchors(outputs), logits, codes):
            level_scores = tf.sigmoid(level_logits[n, :, 0]).numpy()
            decoded = detector.coder.decode(anchors, level_codes[n]).numpy()
            limits = np.array([width, height, width, height]) - last
            decoded = np.clip(decoded, 0, limits)
            order = np.argsort(-level_scores, kind="stable")[:100]
            if convention == "mmdet1" and len(level_scores) <= 100:
                order = np.sort(order)  # few anchors stay in their order
            large = (decoded[order, 2:] - decoded[order, :2] + last >= 6).all(axis=1)
            order = order[large]
            kept = suppressed(decoded[order], level_scores[order], 0.5, convention)
            kept = sorted(kept) if convention == "mmdet1" else kept
            rows += [(level_scores[i], *decoded[i]) for i in order[kept[:9]]]
        want = np.array(sorted(rows, reverse=True)[:20])
        np.testing.assert_allclose(scores[n], want[:, 0], rtol=1e-5)
        np.testing.assert_allclose(boxes[n], want[:, 1:], rtol=0, atol=1e-3)


def test_proposals_past_the_end_are_padding():
    detector, outputs = rpn(), raw_outputs()
    options = ProposalOptions(nms_iou=0.05, max_proposals=500, across_levels=True)
    boxes, scores, present = (x.numpy() for x in detector.proposals(outputs, IMAGE_SIZES, options))
    assert 0 < present.sum() < 200 and boxes.shape == (2, 500, 4)
    assert not boxes[~present].any() and (scores[~present] == -1).all()
    assert (np.diff(present.astype(int), axis=1) <= 0).all()  # real ones first
    for n in range(2):
        ious = pairwise_iou(boxes[n, present[n]], boxes[n, present[n]]).numpy()
        assert (ious - np.eye(len(ious)) <= 0.05 + 1e-6).all()
