"""From grey levels to a network's input."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize, normalized_batch


@pytest.mark.parametrize("shape", [(5, 7, 3), (2, 4, 6, 3)])
def test_normalize_is_numpys(shape):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    expected = (images - np.array(IMAGENET_MEAN)) / IMAGENET_STD
    result = tf.function(normalize)(tf.constant(images), IMAGENET_MEAN, IMAGENET_STD)
    assert result.shape == shape
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_uint8_images_are_normalised_each_by_its_own_numbers_and_zero_beyond_their_size(
    jit_compile,
):
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (2, 8, 10, 3), dtype=np.uint8)
    mean = rng.uniform(50, 200, (2, 3)).astype(np.float32)
    std = rng.uniform(10, 80, (2, 3)).astype(np.float32)
    sizes = np.int32([[8, 7], [5, 10]])
    batch = {"images": images, "image_sizes": sizes, "pixel_mean": mean, "pixel_std": std}
    batch = {name: tf.constant(value) for name, value in batch.items()}
    result = tf.function(normalized_batch, jit_compile=jit_compile)(batch)
    assert set(result) == {"images", "image_sizes"}
    expected = (images - mean[:, None, None].astype(np.float64)) / std[:, None, None]
    expected[0, :, 7:] = 0
    expected[1, 5:] = 0
    np.testing.assert_allclose(result["images"], expected, rtol=1e-5, atol=1e-5)


def test_float_images_stay_and_uint8_ones_need_their_numbers():
    batch = {"images": tf.zeros([1, 2, 2, 3]), "image_sizes": tf.constant([[2, 2]])}
    assert normalized_batch(batch) is batch
    with pytest.raises(ValueError, match="pixel_mean and pixel_std"):
        normalized_batch({**batch, "images": tf.zeros([1, 2, 2, 3], tf.uint8)})
