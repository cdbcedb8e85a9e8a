"""Pasting against OpenCV, against exact geometry, and the two forms against each other."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.paste import paste_mask, paste_masks

HEIGHT, WIDTH = 40, 56


@pytest.fixture(scope="module")
def masks():
    return np.random.default_rng(0).random((9, 28, 28), np.float32)


BOXES = np.float32(
    [
        [3, 4, 31, 32],  # a pixel a cell
        [10.3, 5.7, 30.9, 39.2],
        [-20, -3.5, 90, 22],  # beyond the image
        [7.2, 8.1, 7.9, 8.6],  # within a pixel
        [12, 30, 12, 30],  # nothing
        [60, 45, 80, 90],  # outside
        [20, 20, 10, 10],  # turned round
        [0, 0, 56, 40],
        [15.5, 2.5, 16.5, 38.5],
    ]
)


def exact(mask, box):
    """Bilinear between centres of cells, pixel by pixel, in float64."""
    pasted = np.zeros((HEIGHT, WIDTH))
    x1, y1, x2, y2 = box.astype(np.float64)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            x, y = column + 0.5, row + 0.5
            if not (x1 <= x < x2 and y1 <= y < y2):
                continue
            u = np.clip((x - x1) / (x2 - x1) * 28 - 0.5, 0, 27)
            v = np.clip((y - y1) / (y2 - y1) * 28 - 0.5, 0, 27)
            i, j = min(int(v), 26), min(int(u), 26)
            weights = np.outer([1 - (v - i), v - i], [1 - (u - j), u - j])
            pasted[row, column] = (weights * mask[i : i + 2, j : j + 2]).sum()
    return pasted


def authors(mask, box):
    """Whole corners, the last pixel counted, cv2.resize of the probabilities."""
    pasted = np.zeros((HEIGHT + 200, WIDTH + 200), np.float32)  # room around the image
    x1, y1, x2, y2 = box.astype(int)
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    pasted[100 + y1 : 100 + y1 + height, 100 + x1 : 100 + x1 + width] = cv2.resize(
        mask, (int(width), int(height))
    )
    return pasted[100:-100, 100:-100]


@pytest.mark.parametrize(("convention", "reference"), [("modern", exact), ("mmdet1", authors)])
def test_masks_of_all_kinds_of_boxes(masks, convention, reference):
    expected = np.stack([reference(mask, box) for mask, box in zip(masks, BOXES)])
    assert np.abs(expected - 0.5).min() > 1e-6, "no pixel is left to rounding"
    paste = tf.function(paste_masks, jit_compile=True)
    for found in (
        paste_masks(masks, BOXES, HEIGHT, WIDTH, convention).numpy(),
        paste(masks, BOXES, HEIGHT, WIDTH, convention).numpy(),
        np.stack([paste_mask(m, box, HEIGHT, WIDTH, convention) for m, box in zip(masks, BOXES)]),
    ):
        assert found.dtype == bool
        np.testing.assert_array_equal(found, expected > 0.5)


def test_any_leading_axes_dtypes_and_dynamic_sizes(masks):
    plain = paste_masks(masks[:8], BOXES[:8], HEIGHT, WIDTH).numpy()
    paste = tf.function(paste_masks)
    batched = paste(
        tf.reshape(masks[:8], [2, 4, 28, 28]),
        tf.reshape(BOXES[:8], [2, 4, 4]),
        tf.constant(HEIGHT),
        tf.constant(WIDTH),
    )
    np.testing.assert_array_equal(tf.reshape(batched, plain.shape), plain)
    half = paste_masks(tf.cast(masks, tf.float16), BOXES, HEIGHT, WIDTH).numpy()
    assert half.shape == (9, HEIGHT, WIDTH) and (half[:8] == plain).mean() > 0.999
    assert paste_masks(masks[:0], BOXES[:0], HEIGHT, WIDTH).shape == (0, HEIGHT, WIDTH)


def test_unknown_convention_is_named(masks):
    for paste in (paste_masks, paste_mask):
        with pytest.raises(ValueError, match="convention"):
            paste(masks[0], BOXES[0], HEIGHT, WIDTH, "old")
