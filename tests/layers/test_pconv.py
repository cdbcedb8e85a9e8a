import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.layers import PConv
from sepc_tf.ops.conv2d import conv2d
from sepc_tf.ops.resize import resize_bilinear_align_corners

RNG = np.random.default_rng(0)


def pyramid(sizes=((9, 12), (5, 6), (3, 3), (2, 2), (1, 1)), channels=4):
    return [tf.constant(RNG.standard_normal([2, *s, channels]).astype(np.float32)) for s in sizes]


def randomise(layer, scale=0.3):
    for path, variable in named_variables(layer).items():
        if "moving" not in path:
            variable.assign(scale * RNG.standard_normal(variable.shape).astype(np.float32))


def test_the_equation():
    levels = pyramid()
    pconv = PConv(6, normalization=None, activation=None)
    outputs = pconv(levels)
    randomise(pconv)
    outputs = pconv(levels)

    def term(conv, x, strides=1):
        kernel, bias = map(tf.convert_to_tensor, conv.weights)
        return conv2d(x, kernel, strides=strides, padding=1) + bias

    for level, y in enumerate(outputs):
        expected = term(pconv.same, levels[level])
        if level > 0:
            expected += term(pconv.finer, levels[level - 1], strides=2)
        if level < len(levels) - 1:
            coarser = term(pconv.coarser, levels[level + 1])
            expected += resize_bilinear_align_corners(coarser, levels[level].shape[1:3])
        np.testing.assert_allclose(y, expected, atol=1e-5)


def test_norm_comes_before_relu():
    levels = pyramid()
    pconv = PConv(6)
    pconv.build([x.shape for x in levels])
    pconv.norm.beta.assign(np.full(6, -100.0, np.float32))
    assert all(np.all(y == 0) for y in pconv(levels, training=True))
    pconv.norm.beta.assign(np.full(6, 100.0, np.float32))
    pixels = np.concatenate([np.reshape(y, [-1, 6]) for y in pconv(levels, training=True)])
    np.testing.assert_allclose(pixels.mean(axis=0), 100.0, rtol=1e-5)
    # The variance of a new layer's sums is comparable with epsilon, so it comes out below one.
    assert np.all(pixels.std(axis=0) < 1.001)


@pytest.mark.parametrize("deformable", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [((1, 1),), ((4, 5),), ((7, 3), (4, 2)), ((1, 2), (1, 1), (1, 1)), ((13, 10), (7, 5), (4, 3))],
)
def test_any_number_and_size_of_levels(sizes, deformable):
    levels = pyramid(sizes)
    pconv = PConv(6, deformable=deformable)
    pconv.build([x.shape for x in levels])
    randomise(pconv)
    outputs = pconv(levels, training=True)
    assert [tuple(y.shape) for y in outputs] == [(2, *size, 6) for size in sizes]
    assert all(np.isfinite(y).all() for y in outputs)


def test_scale_kernel_one_shares_one_convolution():
    levels = pyramid()
    pconv = PConv(6, scale_kernel_size=1, normalization=None, activation=None)
    outputs = pconv(levels)
    assert list(named_variables(pconv)) == ["same/kernel", "same/bias"]
    kernel = tf.convert_to_tensor(pconv.same.kernel)
    for x, y in zip(levels, outputs):
        np.testing.assert_allclose(y, conv2d(x, kernel, padding=1), atol=1e-6)


@pytest.mark.parametrize("normalization", ["integrated", "single", "independent", None])
def test_round_trip_in_a_functional_model_of_unknown_size(normalization, tmp_path):
    inputs = [keras.Input((None, None, 4)) for _ in range(3)]
    outputs = PConv(6, deformable=True, normalization=normalization, name="pconv")(inputs)
    model = keras.Model(inputs, outputs)
    randomise(model.get_layer("pconv"))
    levels = pyramid(((9, 12), (5, 6), (3, 3)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(model(levels), loaded(levels)):
        np.testing.assert_array_equal(a, b)


def test_training_reaches_every_variable():
    levels = pyramid()
    pconv = PConv(6, deformable=True)
    pconv.build([x.shape for x in levels])
    randomise(pconv)
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.reduce_sum(y**2) for y in pconv(levels, training=True)])
    for variable, gradient in zip(
        pconv.trainable_weights, tape.gradient(loss, pconv.trainable_weights)
    ):
        assert gradient is not None, variable.name


def test_mixed_precision():
    pconv = PConv(6, deformable=True, dtype="mixed_bfloat16")
    outputs = pconv([tf.cast(x, tf.bfloat16) for x in pyramid()], training=True)
    assert {y.dtype for y in outputs} == {tf.bfloat16}


def test_errors():
    with pytest.raises(ValueError, match="scale_kernel_size must be 1 or 3, got 5"):
        PConv(6, scale_kernel_size=5)
    with pytest.raises(ValueError, match="normalization must be one of"):
        PConv(6, normalization="layer")
    with pytest.raises(ValueError, match=r"half the size, rounded up.*\(9, 12\), \(4, 6\)"):
        PConv(6)(pyramid(((9, 12), (4, 6))))
