"""Points and FCOS's assignment against loops over points and boxes in numpy."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.matching import BACKGROUND, IGNORED
from sepc_tf.ops.points import (
    PointMatcher,
    box_distances,
    centerness,
    distance_boxes,
    grid_points,
)

SIZES = [(8, 12), (4, 6), (2, 3)]
STRIDES = (8, 16, 32)


def test_points_are_the_centres_of_cells():
    fine, coarse = grid_points([(2, 3), (1, 1)], (8, 5))
    assert fine.numpy().tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert coarse.numpy().tolist() == [[2.5, 2.5]]
    # theirs divides the stride without a remainder
    fine, coarse = grid_points([(2, 3), (1, 2)], (8, 5), "mmdet1")
    assert fine.numpy()[1].tolist() == [12, 4] and coarse.numpy().tolist() == [[2, 2], [7, 2]]


def test_distances_and_boxes_are_each_others_inverse():
    rng = np.random.default_rng(0)
    points, boxes = rng.normal(size=(5, 2)), rng.normal(size=(3, 5, 4))
    distances = box_distances(points, boxes)
    np.testing.assert_array_equal(distances[..., 0], points[:, 0] - boxes[..., 0])
    np.testing.assert_array_equal(distances[..., 3], boxes[..., 3] - points[:, 1])
    np.testing.assert_allclose(distance_boxes(points, distances), boxes, atol=1e-12)


def test_centerness():
    distances = np.random.default_rng(0).uniform(0.1, 9, (20, 4)).astype(np.float32)
    left, top, right, bottom = distances.T
    across = np.minimum(left, right) / np.maximum(left, right)
    along = np.minimum(top, bottom) / np.maximum(top, bottom)
    np.testing.assert_allclose(centerness(distances), np.sqrt(across * along), rtol=1e-6)
    outside = tf.constant([[-1.0, 2, 3, 4], [-1, 2, -3, 4], [0, 2, 0, 4]])
    np.testing.assert_array_equal(centerness(outside), [0, 0, 0])


def loops(matcher, boxes, present, valid):
    """The rule, one point and one box at a time."""
    points = np.concatenate([p.numpy() for p in matcher.points(SIZES)])
    level = np.repeat(range(len(SIZES)), [h * w for h, w in SIZES])
    ends = [0.0, *matcher.max_distances, np.inf]
    last = 1 if matcher.convention == "mmdet1" else 0
    matches = np.full(valid.shape, BACKGROUND)
    for image, n in np.ndindex(valid.shape):
        (x, y), here, smallest = points[n], level[n], np.inf
        for m in np.flatnonzero(present[image]):
            x1, y1, x2, y2 = boxes[image, m]
            distances = np.array([x - x1, y - y1, x2 - x, y2 - y])
            inside = distances.min() > 0
            if matcher.center_radius is not None:
                reach = matcher.center_radius * matcher.strides[here]
                inside &= max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < reach
            fits = ends[here] <= distances.max() <= ends[here + 1]
            area = (x2 - x1 + last) * (y2 - y1 + last)
            if inside and fits and area < smallest:
                smallest, matches[image, n] = area, m
    return np.where(valid, matches, IGNORED)


def problem(seed, count, images=2):
    """Boxes on even pixels: points on their edges, distances at the ends, equal areas, copies."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(-4, 30, (images, count, 2)) * 2
    sides = rng.choice([4, 16, 24, 32, 48, 64, 100], (images, count, 2))
    boxes = np.concatenate([corner, corner + sides], axis=2).astype(np.float32)
    boxes[:, -1] = boxes[:, 0]
    boxes[:, 1, :2], boxes[:, 1, 2:] = 4, (28, 68)  # largest distances 24 and 64 exactly
    present = rng.random((images, count)) < 0.9
    present[:, [0, 1, -1]] = True
    return boxes, present, rng.random((images, sum(h * w for h, w in SIZES))) < 0.95


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
@pytest.mark.parametrize(
    ("radius", "ends", "count"),
    [(None, (32, 64), 5), (1.5, (24, 40), 5), (0.5, None, 20)],  # 20: more than one round
)
def test_matches_are_those_of_loops(convention, radius, ends, count):
    matcher = PointMatcher(STRIDES, ends, radius, convention)
    boxes, present, valid = problem(count, count)
    present[1] = False  # an image without objects
    expected = loops(matcher, boxes, present, valid)
    assert len(np.unique(expected[0])) > 4 and (expected[1] < 0).all()
    got = matcher(SIZES, tf.constant(boxes), tf.constant(present), tf.constant(valid))
    np.testing.assert_array_equal(got, expected)


def test_equal_areas_go_to_the_first_and_smaller_ones_win():
    boxes = tf.constant([[[0.0, 0, 32, 32], [0, 0, 16, 16], [0, 0, 16, 16], [8, 0, 24, 16]]])
    matches = PointMatcher(STRIDES)(SIZES, boxes, tf.ones([1, 4], bool), tf.ones([1, 126], bool))
    assert matches[0, :5].numpy().tolist() == [1, 1, 3, 0, BACKGROUND]


def test_any_number_of_boxes_and_cells_and_compiled():
    matcher = PointMatcher(STRIDES, center_radius=1.5)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 4]),
            tf.TensorSpec([None, None], tf.bool),
            tf.TensorSpec([None, None], tf.bool),
            tf.TensorSpec([3, 2], tf.int32),
        ]
    )
    def dynamic(boxes, present, valid, sizes):
        return matcher([tf.unstack(size) for size in tf.unstack(sizes)], boxes, present, valid)

    compiled = tf.function(lambda *values: matcher(SIZES, *values), jit_compile=True)
    for count in (3, 11):
        boxes, present, valid = (tf.constant(x) for x in problem(count, count))
        expected = loops(matcher, boxes.numpy(), present.numpy(), valid.numpy())
        np.testing.assert_array_equal(dynamic(boxes, present, valid, SIZES), expected)
    np.testing.assert_array_equal(compiled(boxes, present, valid), expected)


@pytest.mark.parametrize("ends", [(32,), (32, 32), (64, 32), (0, 32), (32, 64, 128)])
def test_ends_that_do_not_fit_the_levels(ends):
    with pytest.raises(ValueError, match="max_distances must be 2 rising positive numbers"):
        PointMatcher(STRIDES, ends)


def test_a_radius_or_a_convention_that_is_none():
    with pytest.raises(ValueError, match="center_radius must be positive; got 0"):
        PointMatcher(STRIDES, center_radius=0)
    with pytest.raises(ValueError, match="convention must be one of"):
        PointMatcher(STRIDES, convention="mmdet2")
