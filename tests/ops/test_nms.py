"""NMS against a plain loop, in both conventions."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.boxes import pairwise_iou
from sepc_tf.ops.nms import kept_rows, multiclass_nms, top_candidates


def loop_nms(boxes, scores, convention, score_threshold, iou_threshold, most):
    ious = pairwise_iou(boxes, boxes, convention).numpy()
    found = []
    for k in range(scores.shape[1]):
        kept = []
        for i in np.argsort(-scores[:, k], kind="stable"):
            if scores[i, k] > score_threshold and all(ious[i, j] <= iou_threshold for j in kept):
                kept.append(i)
        found += [(scores[i, k], k, i) for i in kept]
    return sorted(found, reverse=True)[:most]


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
@pytest.mark.parametrize("most", [10, 100])
def test_equals_a_loop_for_every_image(convention, most):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (3, 60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 30, (3, 60, 2))], -1).astype(np.float32)
    scores = rng.uniform(0, 0.3, (3, 60, 4)).astype(np.float32)
    scores[2] = 0.01  # an image without detections
    got = multiclass_nms(
        tf.constant(boxes), tf.constant(scores), 0.05, 0.4, most, convention=convention
    )
    got = {name: value.numpy() for name, value in got.items()}
    for image in range(3):
        want = loop_nms(boxes[image], scores[image], convention, 0.05, 0.4, most)
        count = len(want)
        assert got["num_detections"][image] == count
        np.testing.assert_allclose(got["scores"][image, :count], [w[0] for w in want])
        np.testing.assert_array_equal(got["classes"][image, :count], [w[1] for w in want])
        indices = [w[2] for w in want]
        np.testing.assert_allclose(got["boxes"][image, :count], boxes[image][indices], atol=1e-5)
        assert (got["classes"][image, count:] == -1).all()
        assert not got["scores"][image, count:].any() and not got["boxes"][image, count:].any()
    assert got["boxes"].shape == (3, most, 4)
    assert got["classes"].dtype == got["num_detections"].dtype == np.int32


def test_the_last_pixel_decides():
    # 10 x 10 boxes, 3 px apart: IoU 70 / 130 without the last pixel, 88 / 154 with it.
    boxes = tf.constant([[[0.0, 0.0, 10.0, 10.0], [3.0, 0.0, 13.0, 10.0]]])
    scores = tf.constant([[[0.9], [0.8]]])
    for convention, count in (("modern", 2), ("mmdet1", 1)):
        got = multiclass_nms(boxes, scores, iou_threshold=0.56, convention=convention)
        assert got["num_detections"].numpy() == count


def test_boxes_without_area_are_dropped_in_modern():
    boxes = tf.constant([[[5.0, 0.0, 5.0, 9.0], [0.0, 0.0, 4.0, 4.0]]])
    scores = tf.constant([[[0.9], [0.8]]])
    assert multiclass_nms(boxes, scores)["num_detections"].numpy() == 1
    assert multiclass_nms(boxes, scores, convention="mmdet1")["num_detections"].numpy() == 2


def test_threshold_is_strict():
    boxes = tf.constant([[[0.0, 0.0, 4.0, 4.0]]])
    assert multiclass_nms(boxes, tf.constant([[[0.5]]]), 0.5)["num_detections"].numpy() == 0


def test_top_candidates_by_best_class():
    scores = tf.constant([[[0.1, 0.2], [0.9, 0.0], [0.3, 0.4]]])
    np.testing.assert_array_equal(top_candidates(scores, 2), [[1, 2]])
    np.testing.assert_array_equal(top_candidates(scores, 9), [[1, 2, 0]])


def random_candidates(seed, images=3, count=50, classes=4):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (images, count, 2))
    sides = rng.uniform(4, 30, (images, count, 2))
    boxes = np.concatenate([corner, corner + sides], -1).astype(np.float32)
    scores = rng.uniform(0, 0.9, (images, count, classes)).astype(np.float32)
    scores[2] = 0.01  # an image without detections
    return boxes, scores


def loop_soft_nms(boxes, scores, convention, score_threshold, sigma, most):
    """The algorithm of the paper, one class after the other."""
    ious = pairwise_iou(boxes, boxes, convention).numpy().astype(np.float64)
    found = []
    for k in range(scores.shape[1]):
        left = {i: float(s) for i, s in enumerate(scores[:, k]) if s > score_threshold}
        while left:
            best = max(left, key=left.get)
            found.append((left.pop(best), k, best))
            left = {i: s * np.exp(-(ious[best, i] ** 2) / sigma) for i, s in left.items()}
            left = {i: s for i, s in left.items() if s > score_threshold}
    return sorted(found, reverse=True)[:most]


def loop_agnostic_nms(boxes, scores, convention, score_threshold, iou_threshold, most):
    classes = scores.argmax(axis=1)
    found = loop_nms(
        boxes, scores.max(axis=1, keepdims=True), convention, score_threshold, iou_threshold, most
    )
    return [(score, classes[i], i) for score, _, i in found]


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
@pytest.mark.parametrize(
    ("kind", "reference", "parameter"),
    [("soft", loop_soft_nms, 0.4), ("class_agnostic", loop_agnostic_nms, 0.6)],
)
def test_other_kinds_equal_their_loops(kind, reference, parameter, convention):
    boxes, scores = random_candidates(1)
    for most in (7, 400):
        got = multiclass_nms(
            tf.constant(boxes),
            tf.constant(scores),
            0.1,
            parameter,
            most,
            convention=convention,
            kind=kind,
            soft_sigma=parameter,
        )
        got = {name: value.numpy() for name, value in got.items()}
        for image in range(3):
            want = reference(boxes[image], scores[image], convention, 0.1, parameter, most)
            count = len(want)
            assert got["num_detections"][image] == count
            np.testing.assert_allclose(
                got["scores"][image, :count], [w[0] for w in want], rtol=1e-5
            )
            np.testing.assert_array_equal(got["classes"][image, :count], [w[1] for w in want])
            rows = np.array([w[2] for w in want], int)
            np.testing.assert_allclose(got["boxes"][image, :count], boxes[image][rows], atol=1e-5)
            assert (got["classes"][image, count:] == -1).all()


@pytest.mark.parametrize("kind", ["hard", "soft", "class_agnostic"])
def test_boxes_of_each_class_are_used(kind):
    # Two boxes for each of two classes: those of class 1 lie elsewhere.
    boxes = np.zeros((1, 2, 2, 4), np.float32)
    boxes[0, :, 0] = [[0, 0, 4, 4], [20, 0, 24, 4]]
    boxes[0, :, 1] = [[40, 0, 44, 4], [60, 0, 64, 4]]
    scores = tf.constant([[[0.9, 0.2], [0.1, 0.8]]])
    got = multiclass_nms(tf.constant(boxes), scores, 0.15, kind=kind, max_detections=4)
    found = list(zip(got["boxes"].numpy()[0, :, 0], got["classes"].numpy()[0]))
    expected = [(0, 0), (60, 1), (40, 1)] if kind != "class_agnostic" else [(0, 0), (60, 1)]
    assert found[: len(expected)] == expected
    assert got["num_detections"].numpy() == len(expected)


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_kept_rows_equal_a_loop(convention):
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 40, (2, 50, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 30, (2, 50, 2))], -1).astype(np.float32)
    scores = rng.normal(size=(2, 50)).astype(np.float32)  # negative ones count as well
    scores[0, 10:20] = 0.5  # the first of equal ones goes first
    present = rng.uniform(size=(2, 50)) < 0.8
    rows, counts = kept_rows(boxes, scores, present, 0.4, 12, convention)
    for image in range(2):
        ious = pairwise_iou(boxes[image], boxes[image], convention).numpy()
        kept = []
        for i in np.argsort(-scores[image], kind="stable"):
            if present[image, i] and all(ious[i, j] <= 0.4 for j in kept):
                kept.append(i)
        count = min(len(kept), 12)
        assert counts[image] == count > 5
        np.testing.assert_array_equal(rows[image, :count], kept[:12])
        assert not rows[image, count:].numpy().any()
