import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.necks import SEPC

RNG = np.random.default_rng(0)


def pyramid(sizes=((10, 13), (5, 7), (3, 4)), channels=4):
    return [tf.constant(RNG.standard_normal([2, *s, channels]).astype(np.float32)) for s in sizes]


def randomise(layer):
    for path, variable in named_variables(layer).items():
        if "moving" not in path:
            variable.assign(0.3 * RNG.standard_normal(variable.shape).astype(np.float32))


@pytest.mark.parametrize(
    ("variant", "deformable", "extra_deformable", "normalized"),
    [
        ("pconv", False, False, False),
        ("pconv_ibn", False, False, True),
        ("sepc_lite", False, True, True),
        ("sepc", True, True, True),
    ],
)
def test_variants_hold_the_right_parts(variant, deformable, extra_deformable, normalized):
    neck = SEPC.variant(variant, filters=4)
    neck(pyramid())
    names = set(named_variables(neck))
    assert {f"pconv_{i}/same/kernel" for i in range(4)} <= names
    assert ("pconv_3/coarser/offset/kernel" in names) == deformable
    assert ("cls_conv/offset/kernel" in names) == extra_deformable
    assert ("box_norm/gamma" in names) == normalized
    assert ("pconv_0/norm/gamma" in names) == normalized


def test_the_neck_is_its_parts_in_order():
    neck = SEPC(4, num_convs=2, deformable=True, extra_deformable=True)
    levels = pyramid()
    neck.build([x.shape for x in levels])
    randomise(neck)
    features = neck.pconvs[1](neck.pconvs[0](levels))
    for outputs, conv, norm in zip(neck(levels), neck.extra_convs, neck.extra_norms):
        for got, expected in zip(outputs, norm(conv(features))):
            np.testing.assert_allclose(got, tf.nn.relu(expected), atol=1e-6)


def test_own_stacks_for_each_task():
    neck = SEPC(4, num_convs=1, shared=False, normalization=None)
    levels = pyramid()
    neck.build([x.shape for x in levels])
    randomise(neck)
    assert {"cls_pconv_0/same/kernel", "box_pconv_0/same/kernel"} <= set(named_variables(neck))
    cls, box = neck(levels)
    neck.pconvs[0].same.kernel.assign(np.zeros(neck.pconvs[0].same.kernel.shape, np.float32))
    changed_cls, same_box = neck(levels)
    assert np.abs(changed_cls[0] - cls[0]).max() > 1e-3
    np.testing.assert_array_equal(same_box[0], box[0])


def test_with_a_scale_kernel_of_one_every_level_is_a_plain_convolution():
    neck = SEPC(4, num_convs=1, normalization=None, scale_kernel_size=1)
    levels = pyramid()
    neck.build([x.shape for x in levels])
    randomise(neck)
    assert {"pconv_0/same/kernel", "pconv_0/same/bias", "cls_conv/kernel"} < set(
        named_variables(neck)
    )
    assert not [name for name in named_variables(neck) if "coarser" in name or "finer" in name]
    cls, _ = neck(levels)
    expected = levels
    for conv in (neck.pconvs[0].same, neck.extra_convs[0]):
        expected = [
            tf.nn.relu(tf.nn.conv2d(x, conv.kernel, 1, "SAME") + conv.bias) for x in expected
        ]
    for got, y in zip(cls, expected):
        np.testing.assert_allclose(got, y, atol=1e-5)
    assert SEPC.from_config(neck.get_config()).pconvs[0].scale_kernel_size == 1


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_extra_padding(padding):
    cls, box = SEPC(4, num_convs=1, extra_padding=padding)(pyramid())
    cut = 0 if padding == "same" else 2
    expected = [(2, h - cut, w - cut, 4) for h, w in ((10, 13), (5, 7), (3, 4))]
    assert [tuple(x.shape) for x in cls] == [tuple(x.shape) for x in box] == expected


@pytest.mark.parametrize("shared", [True, False])
def test_round_trip_in_a_functional_model_of_unknown_size(shared, tmp_path):
    inputs = [keras.Input((None, None, 4)) for _ in range(3)]
    neck = SEPC.variant("sepc", filters=4, num_convs=2, shared=shared, name="sepc")
    cls, box = neck(inputs)
    model = keras.Model(inputs, [*cls, *box])
    randomise(model.get_layer("sepc"))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    levels = pyramid()
    for a, b in zip(model(levels), loaded(levels)):
        np.testing.assert_array_equal(a, b)


def test_unpadded_extra_convolutions_refuse_maps_below_their_kernel():
    neck = SEPC(8, num_convs=1, extra_padding="valid")
    neck([tf.ones([1, 6, 6, 8]), tf.ones([1, 3, 3, 8])])
    small = [tf.ones([1, 4, 8, 8]), tf.ones([1, 2, 4, 8])]
    with pytest.raises(ValueError, match=r"at least 3 x 3 cells .* 256 pixels .* \(2, 4\)"):
        neck(small)
    unknown = tf.function(neck, input_signature=[[tf.TensorSpec([1, None, None, 8])] * 2])
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least 3 x 3 cells"):
        unknown(small)


def test_unknown_variant():
    with pytest.raises(ValueError, match=r"variant must be one of .*'sepc_lite'.* got 'full'"):
        SEPC.variant("full")
