import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.necks import FPN
from sepc_tf.ops.conv2d import conv2d
from sepc_tf.ops.resize import resize_nearest

RNG = np.random.default_rng(0)


def features(sizes=((13, 18), (7, 9), (4, 5))):
    return [
        tf.constant(RNG.standard_normal([2, *size, channels]).astype(np.float32))
        for size, channels in zip(sizes, (4, 6, 8))
    ]


def test_top_down_sums_and_extra_levels():
    c3, c4, c5 = maps = features()
    fpn = FPN(5)
    p3, p4, p5, p6, p7 = fpn(maps)

    def conv(layer, x, strides=1):
        kernel, bias = map(tf.convert_to_tensor, layer.weights)
        return conv2d(x, kernel, strides=strides, padding=kernel.shape[0] // 2) + bias

    m5 = conv(fpn.laterals[2], c5)
    m4 = conv(fpn.laterals[1], c4) + resize_nearest(m5, (7, 9))
    m3 = conv(fpn.laterals[0], c3) + resize_nearest(m4, (13, 18))
    for got, layer, merged in zip((p3, p4, p5), fpn.outputs, (m3, m4, m5)):
        np.testing.assert_allclose(got, conv(layer, merged), atol=1e-5)
    np.testing.assert_allclose(p6, conv(fpn.extras[0], c5, strides=2), atol=1e-5)
    # No activation between: negative values of P6 count.
    np.testing.assert_allclose(p7, conv(fpn.extras[1], p6, strides=2), atol=1e-5)
    assert np.min(p6) < 0
    shapes = fpn.compute_output_shape([x.shape for x in maps])
    assert shapes == [tuple(p.shape) for p in (p3, p4, p5, p6, p7)]


def test_round_trip_in_a_functional_model_of_unknown_size(tmp_path):
    inputs = [keras.Input((None, None, channels)) for channels in (4, 6, 8)]
    model = keras.Model(inputs, FPN(5, name="fpn")(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    maps = features()
    for a, b in zip(model(maps), loaded(maps)):
        np.testing.assert_array_equal(a, b)


def test_fewer_levels_than_maps():
    with pytest.raises(ValueError, match="at least the number of input maps, 3; got 2"):
        FPN(5, num_levels=2)(features())
