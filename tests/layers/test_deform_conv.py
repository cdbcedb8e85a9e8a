"""DeformConv2D: starts as a convolution, follows its offsets, survives saving and training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.layers.deform_conv import DeformConv2D
from sepc_tf.ops.deform_conv2d import deform_conv2d

PADDINGS = ["same", "valid", 2, ((1, 0), (2, 1))]


def features(shape=(2, 7, 9, 4), seed=0):
    return tf.constant(np.random.default_rng(seed).standard_normal(shape), tf.float32)


def randomised(layer, seed=1):
    """Gives every variable of a built layer a random value."""
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        variable.assign(rng.standard_normal(variable.shape).astype(np.float32))
    return layer


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("strides", [1, 2])
def test_starts_as_a_convolution(padding, strides):
    x = features()
    layer = DeformConv2D(6, 3, strides=strides, padding=padding)
    y = layer(x)
    if padding == "same":
        explicit = "SAME"
    else:
        sides = {"valid": ((0, 0), (0, 0)), 2: ((2, 2), (2, 2))}.get(padding, padding)
        explicit = [(0, 0), *sides, (0, 0)]
    want = tf.nn.conv2d(x, tf.convert_to_tensor(layer.kernel), strides, explicit)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-5)
    assert tuple(layer.compute_output_shape(x.shape)) == tuple(y.shape)
    assert tuple(layer.compute_output_shape((None, None, None, 4))) == (None, None, None, 6)


def test_modulated_starts_as_half_a_convolution():
    x = features()
    layer = DeformConv2D(6, modulated=True)
    y = layer(x)
    want = 0.5 * tf.nn.conv2d(x, tf.convert_to_tensor(layer.kernel), 1, "SAME")
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-5)


def test_offsets_come_from_the_sublayer():
    x = features()
    layer = DeformConv2D(6, modulated=True, offset_groups=2, strides=2)
    layer(x)
    randomised(layer)
    weights = {name: tf.convert_to_tensor(v) for name, v in named_variables(layer).items()}
    assert set(weights) == {"kernel", "bias", "offset/kernel", "offset/bias"}
    fields = tf.nn.conv2d(x, weights["offset/kernel"], 2, "SAME") + weights["offset/bias"]
    want = deform_conv2d(
        x,
        fields[..., :36],
        weights["kernel"],
        mask=tf.sigmoid(fields[..., 36:]),
        strides=2,
        offset_groups=2,
    )
    np.testing.assert_allclose(layer(x), want + weights["bias"], rtol=0, atol=1e-4)


def test_dilated_offsets_have_the_size_of_the_output():
    layer = DeformConv2D(3, dilation_rate=2, padding=1)
    assert layer(features()).shape == (2, 5, 7, 3)


def test_saved_model_answers_the_same(tmp_path):
    inputs = keras.Input((None, None, 4))
    layer = DeformConv2D(3, padding=((1, 0), (2, 1)), kernel_regularizer="l2", name="deform")
    model = keras.Model(inputs, layer(inputs))
    randomised(layer)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_layer("deform").get_config() == layer.get_config()
    np.testing.assert_allclose(again(features()), model(features()), rtol=0, atol=1e-6)


def test_fit_trains_every_variable():
    inputs = keras.Input((None, None, 4))
    layer = DeformConv2D(2, name="deform")
    model = keras.Model(inputs, layer(inputs))
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
    before = [np.array(v) for v in model.trainable_variables]
    model.fit(features(), tf.ones([2, 7, 9, 2]), epochs=2, verbose=0)
    for variable, old in zip(model.trainable_variables, before):
        assert np.abs(np.array(variable) - old).max() > 0, variable.name


def test_mixed_precision_keeps_float32_variables():
    layer = DeformConv2D(3, dtype="mixed_bfloat16")
    y = layer(tf.cast(features(), tf.bfloat16))
    assert y.dtype == tf.bfloat16
    assert all(v.dtype in ("float32", tf.float32) for v in layer.variables)


def test_channels_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="groups=3"):
        DeformConv2D(3, groups=3)(features())
