import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.data.preprocess import (
    frame_sizes,
    pad_to_multiple,
    preprocess_image,
    resized_size,
    training_image,
)

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def mmcv_size(height, width, short_side, long_side):
    """`mmcv.rescale_size`, written from its definition."""
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return [int(height * scale + 0.5), int(width * scale + 0.5)]


def resize(image, size):
    """Bilinear with half-pixel centres, edges repeated, one pixel at a time."""
    height, width = image.shape[:2]
    result = np.zeros((*size, 3))
    for row in range(size[0]):
        for column in range(size[1]):
            y = np.clip((row + 0.5) * height / size[0] - 0.5, 0, height - 1)
            x = np.clip((column + 0.5) * width / size[1] - 0.5, 0, width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = y - top, x - left
            result[row, column] = (1 - a) * (
                (1 - b) * image[top, left] + b * image[top, right]
            ) + a * ((1 - b) * image[bottom, left] + b * image[bottom, right])
    return result


def test_size_is_mmcvs():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (200, 2)):
        for short_side, long_side in ((800, 1333), (256, 256), (33, 4000)):
            expected = np.maximum(mmcv_size(height, width, short_side, long_side), 1)
            got = resized_size(int(height), int(width), short_side, long_side)
            np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(resized_size(480, 640, 800, 1333), [800, 1067])
    np.testing.assert_array_equal(resized_size(2, 3000, 800, 1333), [1, 1333])


def test_frame_is_the_image_or_what_mmcvs_one_factor_makes_of_it():
    originals = np.random.default_rng(0).integers(100, 1500, (50, 2))
    resized = np.array([mmcv_size(*size, 800, 1333) for size in originals])
    np.testing.assert_array_equal(frame_sizes(resized, originals, 800, 1333), originals)
    factor = np.minimum(1333 / originals.max(1), 800 / originals.min(1))
    theirs = frame_sizes(resized, originals, 800, 1333, "mmdet1")
    np.testing.assert_allclose(resized / theirs, np.stack([factor] * 2, axis=1), rtol=1e-14)
    assert np.abs(theirs - originals).max() > 0.1, "where they differ it is worth a convention"


@pytest.mark.parametrize("shape, short_side", [((7, 9), 20), ((23, 17), 10), ((12, 12), 12)])
def test_pixels_equal_numpy(shape, short_side):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    result = preprocess_image(image, short_side, 100, MEAN, STD)
    size = mmcv_size(*shape, short_side, 100)
    assert result.dtype == tf.float32 and result.shape == (*size, 3)
    expected = (resize(image.astype(float), size) - MEAN) / STD
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_batch_equals_single_images_in_a_graph_of_unknown_size():
    images = np.random.default_rng(2).integers(0, 256, (2, 15, 22, 3), np.uint8)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def batched(images):
        return pad_to_multiple(preprocess_image(images, 31, 100, MEAN, STD), 32)

    result = batched(images)
    assert result.shape == (2, 32, 64, 3)
    for number in range(2):
        single = preprocess_image(images[number], 31, 100, MEAN, STD)
        np.testing.assert_allclose(result[number, :31, :45], single, atol=1e-6)
    assert not result[:, 31:].numpy().any() and not result[:, :, 45:].numpy().any()


def resize_in_fixed_point(image, size):
    """OpenCV's 8-bit `INTER_LINEAR`, written from its description: weights of 11 bits."""

    def places(count, source):
        position = ((np.arange(count) + 0.5) * source / count - 0.5).astype(np.float32)
        first = np.floor(position).astype(int)
        weight = np.rint(2048 * (position - first)).astype(int)
        return first, weight

    height, width = image.shape[:2]
    (rows, down), (columns, right) = places(size[0], height), places(size[1], width)
    outside = (columns < 0) | (columns >= width - 1)
    columns, right = np.clip(columns, 0, width - 1), np.where(outside, 0, right)
    image = image.astype(int)
    left_pixel = image[:, columns]
    right_pixel = image[:, np.minimum(columns + 1, width - 1)]
    sums = left_pixel * (2048 - right)[:, None] + right_pixel * right[:, None]
    upper = sums[np.clip(rows, 0, height - 1)] >> 4
    lower = sums[np.clip(rows + 1, 0, height - 1)] >> 4
    down = down[:, None, None]
    return (((upper * (2048 - down)) >> 16) + ((lower * down) >> 16) + 2) >> 2


@pytest.mark.parametrize(
    "shape, size", [((7, 9), (20, 26)), ((23, 17), (13, 10)), ((8, 8), (8, 8))]
)
@pytest.mark.parametrize("flip", [False, True])
def test_training_pixels_are_the_authors(shape, size, flip):
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)
    result = training_image(image, size, flip, 32)
    assert result.dtype == np.uint8 and result.shape == (32, 32, 3)
    expected = resize_in_fixed_point(image[:, ::-1] if flip else image, size)
    np.testing.assert_array_equal(result[: size[0], : size[1]], expected)
    assert not result[size[0] :].any() and not result[:, size[1] :].any()


@pytest.mark.parametrize("shape, size", [((24, 30), (80, 100)), ((60, 90), (35, 53))])
def test_training_pixels_are_those_of_evaluation_to_rounding(shape, size):
    image = np.random.default_rng(4).integers(0, 256, (*shape, 3), np.uint8)
    exact = preprocess_image(image, min(size), 1000, (0, 0, 0), (1, 1, 1))
    assert exact.shape == (*size, 3)
    difference = training_image(image, size, False, 1) - exact.numpy()
    # Half a level, the weights' 11 bits, and sums that are cut off, not rounded.
    assert np.abs(difference).max() <= 0.85 and -0.2 < difference.mean() < 0


def test_padding_leaves_multiples_alone():
    assert pad_to_multiple(tf.ones([64, 32, 3])).shape == (64, 32, 3)
    assert pad_to_multiple(tf.ones([1, 65, 1, 3]), 16).shape == (1, 80, 16, 3)
