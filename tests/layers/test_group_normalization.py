import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.flops import count_layer
from sepc_tf.layers import GroupNormalization


def random_map(channels, dtype=np.float32):
    rng = np.random.default_rng(0)
    return (rng.standard_normal([2, 5, 3, channels]) * 3 + 100).astype(dtype)


def normalised(x, groups, gamma, beta):
    """By numpy, in float64: `[N, H, W, groups, C / groups]` over all but the first and fourth."""
    split = x.astype(np.float64).reshape(*x.shape[:3], groups, -1)
    mean = split.mean(axis=(1, 2, 4), keepdims=True)
    y = (split - mean) / np.sqrt(split.var(axis=(1, 2, 4), keepdims=True) + 1e-5)
    return y.reshape(x.shape) * np.asarray(gamma) + np.asarray(beta)


def built(channels, **options):
    norm = GroupNormalization(**options)
    norm.build((None, None, None, channels))
    rng = np.random.default_rng(1)
    for variable in (norm.gamma, norm.beta):
        variable.assign(rng.uniform(0.5, 1.5, channels).astype(np.float32))
    return norm


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (8, 8)])
def test_groups_of_an_image_are_normalised(channels, groups):
    norm, x = built(channels), random_map(channels)
    expected = normalised(x, groups, norm.gamma, norm.beta)
    np.testing.assert_allclose(norm(x), expected, atol=2e-5)
    np.testing.assert_allclose(norm(x[1:]), expected[1:], atol=2e-5)


def test_other_precisions_and_a_compiled_call_of_unknown_size():
    x = random_map(64)
    norm = built(64)
    expected = normalised(x, 32, norm.gamma, norm.beta)
    half = built(64, dtype="mixed_float16")
    y = half(x)
    assert y.dtype == tf.float16 and half.gamma.dtype == "float32"
    # The input alone is rounded: 1/32 of it near 100, of a deviation of 3.
    np.testing.assert_allclose(y, expected, atol=0.03)
    double = built(64, dtype="float64")
    np.testing.assert_allclose(double(x.astype(np.float64)), expected, atol=1e-12)
    compiled = tf.function(
        norm, input_signature=[tf.TensorSpec([None, None, None, 64])], jit_compile=True
    )
    np.testing.assert_allclose(compiled(x), expected, atol=2e-5)
    assert compiled(x[:0]).shape == (0, 5, 3, 64)


def test_it_is_saved_with_its_settings_and_counted_as_a_batch_norm(tmp_path):
    inputs = keras.Input((None, None, 8))
    model = keras.Model(inputs, GroupNormalization(groups=2, epsilon=0.1)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = random_map(8)
    np.testing.assert_array_equal(model(x), loaded(x))
    assert count_layer(loaded.layers[-1], (1, 5, 3, 8)).multiply_adds == 2 * 5 * 3 * 8
