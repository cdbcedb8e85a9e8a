"""Mask targets, against exact areas in float64 and against 8-bit resizing pixel by pixel."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.bitmaps import pack_masks
from sepc_tf.ops.mask_targets import mask_targets

HEIGHT, WIDTH, SIZE = 50, 70, 28
# Whole and broken corners, over the border, 28 x 28, 56 x 56 (in mmdet1), a single pixel.
BOXES = np.array(
    [
        [3.3, 4.7, 40.2, 33.9],
        [-5, -3, 30, 60],
        [10, 12, 37, 39],
        [2, -4, 57, 51],
        [20.5, 20.5, 21, 21],
        [0, 0, 70, 50],
    ],
    np.float32,
)
OBJECTS = np.array([0, 1, 0, 1, 0, 1], np.int32)


@pytest.fixture(scope="module")
def masks():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2, (2, 10, 14)).astype(bool)
    return [
        np.kron(m, np.ones((5, 5), bool)) & (rng.random((HEIGHT, WIDTH)) < 0.95) for m in coarse
    ]


def targets(masks, boxes, objects, convention):
    packed = [tf.constant(x)[None] for x in pack_masks(masks)]
    sizes = tf.constant([[HEIGHT, WIDTH]])
    return mask_targets(
        *packed, tf.constant(objects)[None], tf.constant(boxes)[None], sizes, SIZE, convention
    )[0]


def covered_shares(mask, box, size):
    """Of the bins, from the overlap of each with each row and column of pixels, in float64."""
    x1, y1, x2, y2 = box.astype(np.float64)

    def overlaps(start, end, pixels):
        edges = start + (end - start) * np.arange(size + 1) / size
        low, high = edges[:-1, None], edges[1:, None]
        pixel = np.arange(pixels)
        return np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)

    areas = overlaps(y1, y2, HEIGHT) @ mask.astype(float) @ overlaps(x1, x2, WIDTH).T
    return areas / ((x2 - x1) * (y2 - y1) / size**2)


@pytest.mark.parametrize("compiled", [False, True])
def test_modern_is_the_exact_area_of_each_bin(masks, compiled):
    shares = np.stack([covered_shares(masks[k], b, SIZE) for k, b in zip(OBJECTS, BOXES)])
    clear = np.abs(shares - 0.5) > 1e-4
    assert clear.mean() > 0.9 and 0.2 < (shares > 0.5).mean() < 0.8
    assert ((shares > 0.01) & (shares < 0.99)).mean() > 0.1

    @tf.function(jit_compile=compiled)
    def found():
        return targets(masks, BOXES, OBJECTS, "modern")

    np.testing.assert_array_equal(found().numpy()[clear], shares[clear] > 0.5)


def test_modern_counts_halves_and_sees_what_samples_miss():
    mask = np.zeros((8, 8), bool)
    mask[:, ::2] = True  # bins of 2 x 2 pixels, half covered: 1
    one = np.zeros((8, 8), bool)
    one[0, 0] = True  # bins of half a pixel
    packed = [tf.constant(x)[None] for x in pack_masks([mask, one])]
    boxes = tf.constant([[[0.0, 0, 8, 8], [0, 0, 2, 2]]])
    got = mask_targets(*packed, tf.constant([[0, 1]]), boxes, [[8, 8]], 4)[0].numpy()
    assert got[0].all()
    np.testing.assert_array_equal(got[1], np.kron([[1, 0], [0, 0]], np.ones((2, 2))))


def test_modern_boxes_without_area_far_away_or_not_finite_are_empty():
    packed = [tf.constant(x)[None] for x in pack_masks([np.ones((8, 8), bool)])]
    boxes = [[3, 3, 3, 6], [-1e9, 0, -9e8, 1e9], [np.nan] * 4, [0, 0, np.inf, np.inf]]
    objects = tf.zeros([1, len(boxes)], tf.int32)
    got = mask_targets(*packed, objects, tf.constant([boxes], tf.float32), [[8, 8]], 4)
    assert not got.numpy().any()


def resized_8_bit(crop, size):
    """The rule of the golden README, one pixel after the other in whole numbers."""
    height, width = crop.shape
    if (height, width) == (2 * size, 2 * size):
        return (crop.reshape(size, 2, size, 2).astype(int).sum(axis=(1, 3)) + 2) >> 2

    def place(out, number):
        position = np.float32((out + 0.5) * number / size - 0.5)
        low = int(np.floor(position))
        return low, np.float32(position - np.float32(low))

    def weights(fraction):
        return [int(np.rint(x * np.float32(2048))) for x in (np.float32(1) - fraction, fraction)]

    result = np.zeros((size, size), int)
    for i in range(size):
        row, fraction = place(i, height)
        below = weights(fraction)
        for j in range(size):
            column, fraction = place(j, width)
            if column < 0 or column >= width - 1:
                column, fraction = np.clip(column, 0, width - 1), np.float32(0)
            across = weights(fraction)
            total = 2
            for k in range(2):
                line = crop[np.clip(row + k, 0, height - 1)].astype(int)
                value = line[column] * across[0] + line[min(column + 1, width - 1)] * across[1]
                total += (below[k] * (value >> 4)) >> 16
            result[i, j] = total >> 2
    return result


def test_mmdet1_resizes_the_whole_pixels_of_a_box_in_8_bits(masks):
    got = targets(masks, BOXES, OBJECTS, "mmdet1")
    for found, box, own in zip(got, BOXES, OBJECTS):
        corners = np.clip(box, 0, [WIDTH - 1, HEIGHT - 1] * 2)
        x1, y1, x2, y2 = corners.astype(int)
        want = resized_8_bit(masks[own][y1 : y2 + 1, x1 : x2 + 1], SIZE)
        np.testing.assert_array_equal(found, want)


def test_at_twice_the_size_a_half_counts_in_mmdet1():
    mask = np.zeros((HEIGHT + 10, WIDTH), bool)
    mask[:, ::2] = True  # half of every 2 x 2
    packed = [tf.constant(x)[None] for x in pack_masks([mask])]
    box = tf.constant([[[0.0, 0, 55, 55], [0, 0, 56, 55]]])
    got = mask_targets(*packed, tf.constant([[0, 0]]), box, [[60, 70]], 28, "mmdet1")[0].numpy()
    assert got[0].all() and not got[1].all()


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_what_has_no_mask_is_empty(convention):
    empty = np.zeros((HEIGHT, WIDTH), bool)
    full = ~empty
    boxes = np.array([[5, 5, 40, 40]] * 3, np.float32)
    got = targets([full, None, empty], boxes, np.arange(3, dtype=np.int32), convention)
    np.testing.assert_array_equal(tf.reduce_mean(got, axis=(1, 2)), [1, 0, 0])
