import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.layers import ScaleEqualizingConv
from sepc_tf.ops.conv2d import conv2d
from sepc_tf.ops.deform_conv2d import deform_conv2d

RNG = np.random.default_rng(0)


def pyramid(channels=4, sizes=((9, 7), (5, 4), (1, 1))):
    return [tf.constant(RNG.standard_normal([2, *s, channels]).astype(np.float32)) for s in sizes]


def randomise(layer, scale=0.3):
    for variable in named_variables(layer).values():
        variable.assign(scale * RNG.standard_normal(variable.shape).astype(np.float32))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2])
def test_a_new_layer_is_a_plain_convolution(strides, padding):
    levels = pyramid(sizes=((9, 7), (5, 4), (3, 3)))
    layer = ScaleEqualizingConv(6, strides=strides, padding=padding)
    outputs = layer(levels)
    pixels = 1 if padding == "same" else 0
    for x, y in zip(levels, outputs):
        expected = conv2d(x, tf.convert_to_tensor(layer.kernel), strides=strides, padding=pixels)
        np.testing.assert_allclose(y, expected, atol=1e-6)
    shapes = layer.compute_output_shape([x.shape for x in levels])
    assert shapes == [tuple(y.shape) for y in outputs]


@pytest.mark.parametrize("strides", [1, 2])
def test_only_the_finest_level_is_plain(strides):
    levels = pyramid()
    layer = ScaleEqualizingConv(6, strides=strides)
    layer.build([x.shape for x in levels])
    randomise(layer)
    outputs = layer(levels)
    kernel, bias = tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias)
    expected = conv2d(levels[0], kernel, strides=strides, padding=1) + bias
    np.testing.assert_allclose(outputs[0], expected, atol=1e-5)
    for x, y in zip(levels[1:], outputs[1:]):
        offset_kernel, offset_bias = map(tf.convert_to_tensor, layer.offset.weights)
        offset = conv2d(x, offset_kernel, strides=strides, padding=1) + offset_bias
        expected = deform_conv2d(x, offset, kernel, strides=strides, padding=1) + bias
        np.testing.assert_allclose(y, expected, atol=1e-5)
        assert np.abs(y - conv2d(x, kernel, strides=strides, padding=1) - bias).max() > 0.05


def test_variables_and_plain_form():
    layer = ScaleEqualizingConv(6)
    layer.build([(None, None, None, 4)])
    shapes = {path: tuple(v.shape) for path, v in named_variables(layer).items()}
    assert shapes == {
        "kernel": (3, 3, 4, 6),
        "bias": (6,),
        "offset/kernel": (3, 3, 4, 18),
        "offset/bias": (18,),
    }
    plain = ScaleEqualizingConv(6, deformable=False, use_bias=False)
    plain.build([(None, None, None, 4)])
    assert list(named_variables(plain)) == ["kernel"]


def test_the_first_step_moves_the_offsets():
    # At offset zero the derivative of the sampling is one-sided, not zero.
    levels = pyramid()
    layer = ScaleEqualizingConv(6)
    with tf.GradientTape() as tape:
        tape.watch(levels)
        loss = tf.add_n([tf.reduce_sum(y**2) for y in layer(levels)])
    gradients = tape.gradient(loss, layer.trainable_weights)
    assert all(np.abs(g).max() > 0 for g in gradients)


def test_round_trip_in_a_functional_model_of_unknown_size(tmp_path):
    inputs = [keras.Input((None, None, 4)) for _ in range(3)]
    model = keras.Model(inputs, ScaleEqualizingConv(6, padding="valid", name="conv")(inputs))
    randomise(model.get_layer("conv"))
    levels = pyramid(sizes=((9, 7), (5, 4), (3, 3)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(model(levels), loaded(levels)):
        np.testing.assert_array_equal(a, b)


def test_mixed_precision():
    layer = ScaleEqualizingConv(6, dtype="mixed_bfloat16")
    outputs = layer([tf.cast(x, tf.bfloat16) for x in pyramid()])
    assert {y.dtype for y in outputs} == {tf.bfloat16}
    assert {tf.as_dtype(v.dtype) for v in named_variables(layer).values()} == {tf.float32}


def test_unknown_padding():
    with pytest.raises(ValueError, match="'same' or 'valid', got 'full'"):
        ScaleEqualizingConv(6, padding="full")
