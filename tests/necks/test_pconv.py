"""PConv as a neck: the modules one after the other, saved and in the authors' names."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints import mmdet_names, named_variables
from sepc_tf.config import ConfigError, DetectorConfig
from sepc_tf.layers import PConv
from sepc_tf.necks import PConvNeck
from sepc_tf.zoo import check_detector


def pyramid():
    rng = np.random.default_rng(0)
    return [tf.constant(rng.standard_normal((1, n, n, 4)), tf.float32) for n in (9, 5, 3)]


@pytest.mark.parametrize("normalization", [None, "integrated"])
def test_equals_the_modules_one_after_the_other(normalization):
    neck, maps = PConvNeck(4, num_convs=2, normalization=normalization), pyramid()
    got = neck(maps, training=True)
    modules = [PConv(4, normalization=normalization) for _ in range(2)]
    for module, name in zip(modules, ("pconv_0", "pconv_1")):
        module.build([x.shape for x in maps])
        for path, variable in named_variables(module).items():
            variable.assign(named_variables(neck)[f"{name}/{path}"])
    want = maps
    for module in modules:
        want = module(want, training=True)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert max(np.abs(b).max() for b in want) > 0
    assert [tuple(s) for s in neck.compute_output_shape([x.shape for x in maps])] == [
        tuple(x.shape) for x in got
    ]
    assert mmdet_names(neck)["pconv_1/finer/kernel"] == ("Pconvs.1.Pconv.2.weight", "hwio")


def test_survives_saving(tmp_path):
    inputs = [keras.Input((None, None, 4)) for _ in range(3)]
    neck = PConvNeck(4, num_convs=1, deformable=True, normalization="single", name="pconv")
    model = keras.Model(inputs, neck(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(again(pyramid()), model(pyramid()), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.get_layer("pconv").get_config() == neck.get_config()


def test_needs_a_neck_before_it():
    with pytest.raises(ConfigError, match=r"necks\[0\]: pconv takes a pyramid; put it behind"):
        check_detector(DetectorConfig(necks=[{"type": "pconv"}]), "my.yaml")
