"""Matchers against a plain loop over images, anchors and boxes."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.anchors import AnchorGenerator
from sepc_tf.ops.boxes import pairwise_iou
from sepc_tf.ops.matching import (
    BACKGROUND,
    IGNORED,
    TIE,
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


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_each_image_may_have_anchors_of_its_own(convention):
    anchors, boxes, present, valid = scene(1)
    shifts = tf.constant([0.0, 3.0, -5.0])[:, None, None]
    matcher = MaxIoUMatcher(convention=convention)
    together = matcher(anchors + shifts, boxes, present, valid)
    for image in range(3):
        alone = slice(image, image + 1)
        want = matcher(anchors + shifts[image], boxes[alone], present[alone], valid[alone])
        np.testing.assert_array_equal(together[image], want[0])


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


def unknown_sizes(matcher):
    """The matcher traced as in training: nothing is known but that a box has four numbers."""
    signature = [
        tf.TensorSpec([None, 4]),
        tf.TensorSpec([None, None, 4]),
        tf.TensorSpec([None, None], tf.bool),
        tf.TensorSpec([None, None], tf.bool),
    ]
    return tf.function(matcher, input_signature=signature)


def all_at_once_max_iou(anchors, boxes, present, valid, convention):
    """The matching rule on one `[B, N, M]` array, in numpy."""
    ious = pairwise_iou(anchors, boxes, convention).numpy()
    ious = np.where(valid.numpy()[:, :, None] & present.numpy()[:, None], ious, np.float32(-1))
    best = ious.max(axis=2)
    matches = np.where(best >= 0.5, ious.argmax(axis=2), np.where(best < 0.4, BACKGROUND, IGNORED))
    of_box = ious.max(axis=1, keepdims=True)
    claims = ious >= of_box * np.float32(1 - TIE)
    claims &= of_box >= 0 if convention == "mmdet1" else of_box > 0
    last = np.where(claims, np.arange(ious.shape[2]), -1).max(axis=2)
    return np.where(valid, np.where(last >= 0, last, matches), IGNORED)


def all_at_once_effective_area(anchors, boxes, present, valid, convention):
    """The matching rule on one `[B, N, M]` array, in numpy."""
    last = np.float32(convention == "mmdet1")
    anchors, boxes = anchors.numpy(), boxes.numpy()
    present, valid = present.numpy(), valid.numpy()
    centres = (boxes[..., :2] + boxes[..., 2:] + last) / 2
    half = (boxes[..., 2:] - boxes[..., :2] + last) / 2 * np.float32(0.2)
    low, high = (centres - half)[:, None], (centres + half - last)[:, None]
    sides = np.minimum(anchors[:, None, 2:], high) - np.maximum(anchors[:, None, :2], low) + last
    covered = np.prod(np.maximum(sides, 0), axis=-1)
    covered = covered / np.prod(anchors[:, 2:] - anchors[:, :2] + last, axis=1)[:, None]
    covered = (covered > 0.01) & valid[:, :, None] & present[:, None]
    middle = ((anchors[:, :2] + anchors[:, 2:] + last) / 2)[:, None]
    inside = ((middle > boxes[:, None, :, :2]) & (middle < boxes[:, None, :, 2:])).all(axis=-1)
    areas = np.where(present, np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1), -1)
    priorities = np.argsort(-areas, axis=1, kind="stable")
    if convention == "modern":
        priorities = np.argsort(priorities, axis=1)
    wanted = np.where(covered & inside, priorities[:, None], -1)
    unmatched = np.where(covered.any(axis=2), IGNORED, BACKGROUND)
    matches = np.where(wanted.max(axis=2) >= 0, wanted.argmax(axis=2), unmatched)
    return np.where(valid, matches, IGNORED)


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
@pytest.mark.parametrize("most", [1, 8, 9, 37])
@pytest.mark.parametrize("mode", ["eager", "unknown", "compiled"])
def test_many_boxes_match_as_all_at_once(most, convention, mode):
    cases = (
        (MaxIoUMatcher(convention=convention), all_at_once_max_iou, 4.0),
        (EffectiveAreaMatcher(convention=convention), all_at_once_effective_area, 1.0),
    )
    for matcher, all_at_once, octave_base in cases:
        arguments = scene(most, octave_base=octave_base, most=most)
        function = {
            "eager": matcher,
            "unknown": unknown_sizes(matcher),
            "compiled": tf.function(matcher, jit_compile=True),
        }[mode]
        got = function(*arguments).numpy()
        np.testing.assert_array_equal(got, all_at_once(*arguments, convention))
        assert (got >= 0).any() or most == 1


def test_ties_across_rounds_go_to_the_last_claim_and_the_first_of_equal_boxes():
    anchors = tf.constant([[0.0, 0, 32, 32], [100, 0, 132, 32], [0, 0, 32, 24]])
    wide, twin, far = [0.0, 0, 32, 32], [100.0, 0, 132, 32], [200.0, 0, 232, 32]
    boxes = np.array([[wide] + [far] * 9 + [wide] + [far] * 9 + [twin, twin]], np.float32)
    present = tf.fill([1, boxes.shape[1]], True)
    got = unknown_sizes(MaxIoUMatcher())(anchors, boxes, present, tf.fill([1, 3], True))
    # Boxes 10 and 21 claim their anchors last; anchor 2 is no box's best: the first of equals.
    np.testing.assert_array_equal(got, [[10, 21, 0]])


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


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_a_box_claims_no_anchor_that_it_overlaps_less_than_claim_iou(convention):
    last = 0 if convention == "modern" else 1
    # IoU 0.4 with the first box, 0.2 with the second.
    anchors = np.array([[0, 0, 4 - last, 10 - last], [20, 0, 22 - last, 10 - last]], np.float32)
    boxes = np.array([[[0, 0, 10, 10], [20, 0, 30, 10]]], np.float32) - [0, 0, last, last]
    boxes = tf.constant(boxes, tf.float32)
    present, valid = np.array([[True, True]]), np.array([[True, True]])
    for claim_iou, want in ((0.0, [0, 1]), (0.3, [0, IGNORED]), (0.45, [IGNORED, IGNORED])):
        matcher = MaxIoUMatcher(0.7, 0.1, convention, claim_iou)
        np.testing.assert_array_equal(matcher(anchors, boxes, present, valid), [want])
    with pytest.raises(ValueError, match=r"claim_iou must be in \[0, 1\]"):
        MaxIoUMatcher(claim_iou=1.5)


def test_every_image_may_have_boxes_of_its_own_to_match():
    anchors, boxes, present, valid = scene()
    own = np.stack([anchors, anchors[::-1], anchors])
    got = MaxIoUMatcher()(tf.constant(own), boxes, present, valid).numpy()
    for image in range(len(own)):
        one = (x[image : image + 1] for x in (boxes, present, valid))
        np.testing.assert_array_equal(got[image], MaxIoUMatcher()(own[image], *one)[0])
    assert (got >= 0).any()
