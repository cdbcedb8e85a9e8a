import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.layers import GroupNormalization

RNG = np.random.default_rng(0)


def reference(x, groups, gamma, beta):
    """In float64, a loop over images and groups."""
    y = np.array(x, np.float64)
    width = y.shape[-1] // groups
    for image in y:
        for start in range(0, y.shape[-1], width):
            part = image[..., start : start + width]
            part[...] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return y * gamma + beta


def layer_with_parameters(**options):
    norm = GroupNormalization(groups=2, **options)
    norm.build((None, None, None, 6))
    gamma, beta = RNG.standard_normal((2, 6))
    norm.gamma.assign(gamma)
    norm.beta.assign(beta)
    return norm, gamma, beta


@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [("float32", 1e-5), ("float64", 1e-12), ("mixed_bfloat16", 2e-2), ("mixed_float16", 2e-3)],
)
def test_statistics_are_those_of_a_group_of_an_image(policy, tolerance):
    norm, gamma, beta = layer_with_parameters(dtype=policy)
    # Far from 0, where float16 would lose the variance.
    x = (50 + RNG.standard_normal((3, 5, 4, 6))).astype("float64" if policy == "float64" else "f4")
    x = tf.cast(x, norm.compute_dtype)
    y = tf.function(norm, jit_compile=True)(x)
    assert y.dtype == norm.compute_dtype
    assert norm.gamma.dtype == ("float64" if policy == "float64" else "float32")
    expected = reference(np.asarray(tf.cast(x, tf.float64)), 2, gamma, beta)
    np.testing.assert_allclose(np.asarray(tf.cast(y, tf.float64)), expected, atol=4 * tolerance)


def test_round_trip_in_a_functional_model_of_unknown_size(tmp_path):
    inputs = keras.Input((None, None, 6))
    model = keras.Model(inputs, GroupNormalization(groups=3, name="norm")(inputs))
    model.layers[-1].gamma.assign(RNG.standard_normal(6))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for size in ((1, 1), (4, 7)):
        x = RNG.standard_normal((2, *size, 6)).astype(np.float32)
        np.testing.assert_array_equal(model(x), loaded(x))
        np.testing.assert_allclose(
            model(x), reference(x, 3, model.layers[-1].gamma.numpy(), 0.0), atol=1e-5
        )


def test_channels_that_are_no_multiple():
    with pytest.raises(ValueError, match=r"in 32 groups needs channels that are a multiple .* 48"):
        GroupNormalization()(tf.zeros([1, 2, 2, 48]))
