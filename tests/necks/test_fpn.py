import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints import named_variables
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


def test_extra_levels_of_p5_with_relu():
    maps = features()
    fpn = FPN(5, extra_levels="p5", extra_relu=True)
    p5, p6, p7 = fpn(maps)[2:]
    assert np.min(p5) < 0 and np.min(p6) < 0  # so that a ReLU is seen
    np.testing.assert_allclose(p6, fpn.extras[0](p5), atol=1e-6)
    np.testing.assert_allclose(p7, fpn.extras[1](tf.nn.relu(p6)), atol=1e-6)


def test_subsampled_levels():
    maps = features()
    fpn = FPN(5, extra_levels="pool")
    pyramid = fpn(maps)
    for level in (3, 4):
        np.testing.assert_array_equal(pyramid[level], pyramid[level - 1][:, ::2, ::2])
    assert not fpn.extras
    shapes = fpn.compute_output_shape([x.shape for x in maps])
    assert shapes == [tuple(p.shape) for p in pyramid]


def test_group_norm_after_every_convolution():
    fpn = FPN(32, num_levels=4, norm="group")
    maps = features()
    pyramid = fpn(maps)
    names = {path.split("/")[-1] for path in named_variables(fpn) if "norm" not in path}
    assert names == {"kernel"}  # no biases
    # Each image, and each channel (32 groups of 1), has mean 0 and variance 1 at every level.
    for level in pyramid[:3]:
        np.testing.assert_allclose(np.mean(level, (1, 2)), 0.0, atol=1e-5)
        np.testing.assert_allclose(np.var(level, (1, 2)), 1.0, atol=1e-2)
    m5 = fpn.lateral_norms[2](fpn.laterals[2](maps[2]))
    np.testing.assert_allclose(pyramid[2], fpn.output_norms[2](fpn.outputs[2](m5)), atol=1e-5)
    np.testing.assert_allclose(pyramid[3], fpn.extra_norms[0](fpn.extras[0](maps[2])), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
@pytest.mark.parametrize(
    "options", [{"extra_levels": "pool"}, {"extra_relu": True, "norm": "group"}]
)
def test_every_variant_is_saved_compiled_and_of_any_precision(policy, options):
    fpn = FPN(32, dtype=policy, **options)
    clone = FPN.from_config(fpn.get_config())
    maps = [tf.cast(x, fpn.compute_dtype) for x in features()]
    run = tf.function(
        fpn,
        jit_compile=True,
        input_signature=[[tf.TensorSpec([2, None, None, x.shape[-1]], x.dtype) for x in maps]],
    )
    pyramid = run(maps)
    assert {x.dtype.name for x in pyramid} == {fpn.compute_dtype}
    clone.build([x.shape for x in maps])
    for mine, theirs in zip(fpn.variables, clone.variables):
        theirs.assign(mine)
    for x, y in zip(pyramid, clone(maps)):
        tolerance = 1e-10 if policy == "float64" else 0.1
        np.testing.assert_allclose(np.float64(x), np.float64(y), atol=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_levels": "c4"}, "extra_levels must be one of .* got 'c4'"),
        ({"norm": "batch"}, "norm must be None or \"group\", got 'batch'"),
        ({"extra_relu": True, "extra_levels": "pool"}, "no effect on extra_levels: pool"),
        ({"extra_relu": True, "num_levels": 4}, "extra_relu: True has no effect on 4 levels of 3"),
        ({"extra_levels": "p5", "num_levels": 3}, "extra_levels: p5 has no effect on 3 levels"),
    ],
)
def test_a_choice_that_is_unknown_or_without_effect(options, message):
    with pytest.raises(ValueError, match=message):
        FPN(8, **options).build([(None, None, None, 4)] * 3)


def test_fewer_levels_than_maps():
    with pytest.raises(ValueError, match="at least the number of input maps, 3; got 2"):
        FPN(5, num_levels=2)(features())
