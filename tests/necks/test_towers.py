import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.necks import ConvTowers
from sepc_tf.ops.conv2d import conv2d

RNG = np.random.default_rng(0)


def pyramid():
    return [
        tf.constant(RNG.standard_normal([2, *size, 4]).astype(np.float32))
        for size in ((9, 6), (5, 3), (1, 1))
    ]


@pytest.mark.parametrize("deformable", [False, True])
def test_new_towers_are_stacks_of_convolutions(deformable):
    # The deformable ones too: their offsets start at zero.
    levels = pyramid()
    towers = ConvTowers(6, num_convs=2, deformable=deformable)
    outputs = towers(levels)
    for convs, features in zip((towers.cls_convs, towers.box_convs), outputs):
        for x, got in zip(levels, features):
            for conv in convs:
                x = tf.nn.relu(conv2d(x, tf.convert_to_tensor(conv.kernel), padding=1))
            np.testing.assert_allclose(got, x, atol=1e-6)
    assert ("box_conv_1/offset/kernel" in named_variables(towers)) == deformable


def test_a_group_norm_stands_between_convolution_and_relu():
    levels = pyramid()
    towers = ConvTowers(64, num_convs=2, norm="group")
    outputs = towers(levels)
    assert not any(name.endswith("bias") for name in named_variables(towers))
    for i, name in enumerate(("cls", "box")):
        for x, got in zip(levels, outputs[i]):
            for conv, norm in zip(
                getattr(towers, f"{name}_convs"), getattr(towers, f"{name}_norms")
            ):
                x = tf.nn.relu(norm(conv2d(x, tf.convert_to_tensor(conv.kernel), padding=1)))
            np.testing.assert_allclose(got, x, atol=1e-5)
    with pytest.raises(ValueError, match="norm must be None or \"group\", got 'batch'"):
        ConvTowers(8, norm="batch")


@pytest.mark.parametrize("options", [{}, {"deformable": True}, {"norm": "group"}])
def test_round_trip_in_a_functional_model_of_unknown_size(options, tmp_path):
    inputs = [keras.Input((None, None, 4)) for _ in range(3)]
    cls, box = ConvTowers(6, num_convs=2, **options, name="towers")(inputs)
    model = keras.Model(inputs, [*cls, *box])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    levels = pyramid()
    for a, b in zip(model(levels), loaded(levels)):
        np.testing.assert_array_equal(a, b)
