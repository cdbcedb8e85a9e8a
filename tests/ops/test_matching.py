"""Matchers against a plain loop over images, anchors and boxes."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.anchors import AnchorGenerator
from sepc_tf.ops.boxes import pairwise_iou
from sepc_tf.ops.matching import (
    BACKGROUND,
    IGNORED,
    EffectiveAreaMatcher,
    MaxIoUMatcher,
    gather_matched,
)


def scene(seed=0, octave_base=4.0, images=3, most=6):
    rng = np.random.default_rng(seed)
    generator = AnchorGenerator(
        strides=(8, 16), scales_per_octave=1, ratios=(1.0,), octave_base=octave_base
    )
    anchors = tf.concat(generator([(8, 10), (4, 5)]), axis=0)
    corner = rng.uniform(0, 50, (images, most, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 40, (images, most, 2))], -1)
    present = np.arange(most) < rng.integers(0, most + 1, (images, 1))
    present[0] = False
    boxes = np.where(present[..., None], boxes, -1).astype(np.float32)
    valid = rng.uniform(size=(images, len(anchors))) < 0.9
    return anchors, tf.constant(boxes), tf.constant(present), tf.constant(valid)


@pytest.mark.parametrize("seed", range(3))
def test_max_iou_matches_as_a_loop_does(seed):
    anchors, boxes, present, valid = scene(seed)
    got = MaxIoUMatcher()(anchors, boxes, present, valid).numpy()
    for image in range(len(boxes)):
        ious = pairwise_iou(anchors, boxes[image]).numpy()
        count = int(np.sum(present[image]))
        want = np.full(len(anchors), BACKGROUND)
        for anchor in range(len(anchors)):
            row = ious[anchor, :count]
            if count and row.max() >= 0.5:
                want[anchor] = row.argmax()
            elif count and row.max() >= 0.4:
                want[anchor] = IGNORED
        usable = valid[image].numpy()
        for box in range(count):
            best = ious[usable, box].max()
            if best > 0:
                want[usable & (ious[:, box] > best * (1 - 1e-6))] = box
        want[~usable] = IGNORED
        np.testing.assert_array_equal(got[image], want)


def test_later_box_wins_a_tied_anchor_and_every_box_keeps_one():
    anchors = tf.constant([[0.0, 0, 32, 32], [32, 0, 64, 32], [64, 0, 96, 32]])
    boxes = tf.constant([[[4.0, 4.0, 8.0, 8.0], [40.0, 4.0, 44.0, 8.0], [10.0, 10.0, 14.0, 14.0]]])
    every = tf.constant([[True] * 3])
    got = MaxIoUMatcher()(anchors, boxes, every, every)
    np.testing.assert_array_equal(got, [[2, 1, BACKGROUND]])


def test_a_box_that_nothing_overlaps_differs_between_conventions():
    anchors = tf.constant([[0.0, 0, 8, 8], [8, 0, 16, 8]])
    boxes, every = tf.constant([[[50.0, 50.0, 60.0, 60.0]]]), tf.constant([[True, True]])
    present = tf.constant([[True]])
    modern, mmdet1 = (
        MaxIoUMatcher(convention=name)(anchors, boxes, present, every)
        for name in ("modern", "mmdet1")
    )
    np.testing.assert_array_equal(modern, [[BACKGROUND, BACKGROUND]])
    np.testing.assert_array_equal(mmdet1, [[0, 0]])


def test_xla_claims_the_same_anchors():
    anchors, boxes, present, valid = scene(1)
    matcher = MaxIoUMatcher()
    compiled = tf.function(matcher, jit_compile=True)
    np.testing.assert_array_equal(
        compiled(anchors, boxes, present, valid), matcher(anchors, boxes, present, valid)
    )


@pytest.mark.parametrize("seed", range(3))
def test_effective_area_matches_as_a_loop_does(seed):
    anchors, boxes, present, valid = scene(seed, octave_base=1.0)
    got = EffectiveAreaMatcher()(anchors, boxes, present, valid).numpy()
    for image in range(len(boxes)):
        count = int(np.sum(present[image]))
        for index, (ax1, ay1, ax2, ay2) in enumerate(anchors.numpy()):
            want, smallest, near = BACKGROUND, np.inf, False
            for box, (x1, y1, x2, y2) in enumerate(boxes.numpy()[image, :count]):
                cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * 0.2, (y2 - y1) * 0.2
                width = max(min(ax2, cx + w / 2) - max(ax1, cx - w / 2), 0)
                height = max(min(ay2, cy + h / 2) - max(ay1, cy - h / 2), 0)
                covered = width * height / ((ax2 - ax1) * (ay2 - ay1)) > 0.01
                x, y = (ax1 + ax2) / 2, (ay1 + ay2) / 2
                near |= covered
                if covered and x1 < x < x2 and y1 < y < y2 and (x2 - x1) * (y2 - y1) < smallest:
                    want, smallest = box, (x2 - x1) * (y2 - y1)
            if want == BACKGROUND and near:
                want = IGNORED
            assert got[image, index] == (want if valid[image, index] else IGNORED)


def test_smaller_object_wins_unless_the_authors_permutation_says_otherwise():
    anchors = tf.constant([[28.0, 28.0, 36.0, 36.0]])
    # Areas 3600, 400, 900: sorted by falling area the boxes are 0, 2, 1, its own inverse.
    # With 400, 3600, 900 they are 1, 2, 0, whose inverse is 2, 0, 1.
    squares = {
        side: [32 - side / 2, 32 - side / 2, 32 + side / 2, 32 + side / 2] for side in (20, 30, 60)
    }
    every, valid = tf.constant([[True] * 3]), tf.constant([[True]])
    for sides, modern, mmdet1 in (((60, 20, 30), 1, 1), ((20, 60, 30), 0, 1)):
        boxes = tf.constant([[squares[side] for side in sides]], tf.float32)
        for convention, want in (("modern", modern), ("mmdet1", mmdet1)):
            got = EffectiveAreaMatcher(convention=convention)(anchors, boxes, every, valid)
            assert got.numpy() == want, (sides, convention)


def test_gather_matched():
    values = tf.constant([[1.0, 2.0], [3.0, 4.0]])
    got = gather_matched(values, tf.constant([[1, 0], [1, BACKGROUND]])).numpy()
    np.testing.assert_array_equal(got[0], [2.0, 1.0])
    assert got[1, 0] == 4.0


def test_bad_thresholds_are_named():
    with pytest.raises(ValueError, match=r"negative_iou=0\.6, positive_iou=0\.5"):
        MaxIoUMatcher(0.5, 0.6)
    with pytest.raises(ValueError, match="area_scale"):
        EffectiveAreaMatcher(area_scale=0.0)
