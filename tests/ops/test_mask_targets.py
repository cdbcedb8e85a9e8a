"""Mask targets, against RoIAlign of the whole masks and against 8-bit resizing pixel by pixel."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.bitmaps import pack_masks
from sepc_tf.ops.mask_targets import mask_targets
from sepc_tf.ops.roi_align import roi_align

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
    )[0].numpy()


def test_modern_is_roi_align_of_the_whole_mask(masks):
    boxes = np.clip(BOXES, 0, [WIDTH, HEIGHT] * 2).astype(np.float32)
    maps = tf.constant(np.stack(masks)[..., None], tf.float32)
    pooled = roi_align(
        [maps], np.stack([boxes, boxes]), strides=[1], size=SIZE, samples=2, finest_scale=1e9
    ).numpy()[OBJECTS, np.arange(len(boxes)), ..., 0]
    clear = np.abs(pooled - 0.5) > 1e-4
    assert clear.mean() > 0.9
    got = targets(masks, boxes, OBJECTS, "modern")
    np.testing.assert_array_equal(got[clear], pooled[clear] > 0.5)


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
    np.testing.assert_array_equal(got.mean(axis=(1, 2)), [1, 0, 0])
