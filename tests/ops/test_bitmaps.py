"""Compact masks: what is packed is read back, anywhere in and around the image."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.bitmaps import NO_MASK, pack_masks, read_bitmaps

HEIGHT, WIDTH = 11, 14


@pytest.fixture(scope="module")
def batch():
    """Masks of two images, None where an object has none, and the padded batch of them."""
    rng = np.random.default_rng(3)

    def blob(top, left, bottom, right):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < 0.5
        return mask

    images = [
        [blob(2, 3, 7, 9), None, blob(0, 0, HEIGHT, WIDTH), np.zeros((HEIGHT, WIDTH), bool)],
        [blob(10, 13, 11, 14), blob(4, 0, 6, 14), None, None],
    ]
    packed = [pack_masks(masks) for masks in images]
    longest = max(len(bitmaps) for bitmaps, _, _ in packed)
    bitmaps = np.stack([np.pad(b, (0, longest - len(b))) for b, _, _ in packed])
    frames, offsets = (np.stack([p[i] for p in packed]) for i in (1, 2))
    return images, (bitmaps, frames, offsets)


def test_only_the_tight_box_is_kept():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2:7, 3:9] = np.eye(5, 6, dtype=bool)
    bitmaps, frames, offsets = pack_masks([mask, None, mask])
    assert bitmaps.dtype == np.uint8 and frames.dtype == offsets.dtype == np.int32
    np.testing.assert_array_equal(frames, [[3, 2, 5, 5], [0, 0, 0, 0], [3, 2, 5, 5]])
    np.testing.assert_array_equal(offsets, [0, NO_MASK, 25])
    np.testing.assert_array_equal(bitmaps, np.tile(np.eye(5, dtype=np.uint8).reshape(-1), 2))


def test_an_image_without_objects():
    bitmaps, frames, offsets = pack_masks([])
    assert bitmaps.shape == (0,) and frames.shape == (0, 4) and offsets.shape == (0,)


@pytest.mark.parametrize("compiled", [False, True])
def test_every_pixel_is_read_back(batch, compiled):
    images, packed = batch
    border = 3  # around the image every mask is 0
    objects = np.int32([[0, 1, 2, 3, 2], [3, 2, 1, 0, 1]])
    rows = np.arange(-border, HEIGHT + border, dtype=np.int32)[None, None, :, None]
    columns = np.arange(-border, WIDTH + border, dtype=np.int32)[None, None, None]
    read = tf.function(read_bitmaps, jit_compile=compiled)
    pixels = read(*packed, objects, rows, columns).numpy()
    empty = np.zeros((HEIGHT, WIDTH), bool)
    for i, masks in enumerate(images):
        for j, which in enumerate(objects[i]):
            mask = empty if masks[which] is None else masks[which]
            np.testing.assert_array_equal(pixels[i, j], np.pad(mask, border))


def test_single_points_are_read(batch):
    images, packed = batch
    rows, columns = np.int32([[[4, 5]], [[5, -1]]]), np.int32([[[5, 13]], [[2, 2]]])
    pixels = read_bitmaps(*packed, np.int32([[2], [1]]), rows, columns).numpy()
    expected = [[images[0][2][4, 5], images[0][2][5, 13]], [images[1][1][5, 2], 0]]
    np.testing.assert_array_equal(pixels[:, 0], expected)
