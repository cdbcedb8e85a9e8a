"""The nearest-point matcher against a plain loop over images and boxes."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.matching import BACKGROUND, IGNORED
from sepc_tf.ops.point_matching import NearestPointMatcher
from sepc_tf.ops.points import grid_points

STRIDES = (8, 16, 32)
SIZES = [(8, 12), (4, 6), (2, 3)]


def corners():
    return [p - stride / 2 for p, stride in zip(grid_points(SIZES, STRIDES), STRIDES)]


def looped(points, boxes, present, valid, scale=4.0):
    """As mmdetection words it: level by truncated mean of logarithms, then box after box."""
    flat = np.concatenate(points)
    level = np.concatenate([np.full(len(p), s) for p, s in zip(points, (3, 4, 5))])
    result = np.full(valid.shape, BACKGROUND)
    result[~valid] = IGNORED
    for image in range(len(boxes)):
        shortest = np.full(len(flat), np.inf)
        for index in np.flatnonzero(present[image]):
            x1, y1, x2, y2 = boxes[image, index].astype(np.float64)
            sides = np.maximum([x2 - x1, y2 - y1], 1e-6)
            wanted = np.clip(int(np.log2(sides / scale).mean()), 3, 5)
            distance = np.hypot(*((flat - [(x1 + x2) / 2, (y1 + y2) / 2]) / sides).T)
            distance[(level != wanted) | ~valid[image]] = np.inf
            nearest = distance.argmin()
            if distance[nearest] < shortest[nearest]:
                shortest[nearest], result[image, nearest] = distance[nearest], index
    return result


def scene(seed, images=3, most=12):
    """More boxes than `fold_boxes` takes in a round, many of them on the same location."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (images, most, 2)) * (96, 64)
    centre[:, ::3] = centre[:, 1::3] + rng.uniform(-2, 2, centre[:, ::3].shape)
    sides = np.exp(rng.uniform(1, 5.5, (images, most, 2)))
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=-1).astype(np.float32)
    present = np.arange(most) < rng.integers(3, most + 1, (images, 1))
    present[0] = False
    boxes[~present] = -1
    points = [p.numpy() for p in (corners() if seed % 2 else grid_points(SIZES, STRIDES))]
    valid = rng.uniform(size=(images, sum(map(len, points)))) < 0.9
    return points, boxes, present, valid


@pytest.mark.parametrize("seed", range(4))
def test_matches_as_a_loop_does(seed):
    arguments = scene(seed)
    want = looped(*arguments)
    tensors = tf.nest.map_structure(tf.constant, arguments)
    np.testing.assert_array_equal(NearestPointMatcher(STRIDES)(*tensors), want)
    assert (want[0] < 0).all()  # the image without objects
    wanted = arguments[2][1:].sum()
    assert 0 < (want[1:] >= 0).sum() < wanted  # some boxes lose their location


def match(boxes, matcher=None):
    points = corners()
    boxes = tf.constant([boxes], tf.float32)
    valid = tf.ones([1, sum(len(p) for p in points)], bool)
    matches = (matcher or NearestPointMatcher(STRIDES))(
        points, boxes, tf.ones(boxes.shape[:2], bool), valid
    )
    return {int(i): int(matches[0, i]) for i in np.flatnonzero(matches[0] >= 0)}


def test_equally_near_boxes_the_earlier_one_wins():
    same = [20.0, 12.0, 30.0, 22.0]
    (location,) = match([same, same, same])
    assert match([same, same, same]) == {location: 0}
    nearer = [19.0, 11.0, 29.0, 21.0]  # its centre is on the location (24, 16)
    assert match([same, nearer, same]) == {location: 1}


def test_a_location_as_near_as_another_is_the_first_of_them():
    assert match([[2.0, -2.0, 6.0, 2.0]]) == {0: 0}  # centre (4, 0), between (0, 0) and (8, 0)


def test_sides_at_powers_of_two_belong_to_the_coarser_level():
    first = np.cumsum([0, *(h * w for h, w in SIZES)])
    for side, level in ((31.99, 0), (32, 0), (63.99, 0), (64, 1), (127.99, 1), (128, 2), (999, 2)):
        (location,) = match([[0.0, 0.0, side, side]])
        assert first[level] <= location < first[level + 1], side
    (location,) = match([[0.0, 0.0, 16.0, 256.0]])  # the geometric mean counts: 64
    assert first[1] <= location < first[2]
    (location,) = match([[0.0, 0.0, 32.0, 32.0]], NearestPointMatcher(STRIDES, scale=1.0))
    assert location >= first[2]


def test_compiled_and_with_an_unknown_number_of_boxes():
    arguments = tf.nest.map_structure(tf.constant, scene(1))
    matcher = NearestPointMatcher(STRIDES)
    points = arguments[0]

    @tf.function(
        jit_compile=True,
        input_signature=[
            tf.TensorSpec([None, None, 4]),
            tf.TensorSpec([None, None], tf.bool),
            tf.TensorSpec([None, None], tf.bool),
        ],
    )
    def compiled(boxes, present, valid):
        return matcher(points, boxes, present, valid)

    np.testing.assert_array_equal(compiled(*arguments[1:]), matcher(*arguments))
    assert NearestPointMatcher.from_config(matcher.get_config()) == matcher
