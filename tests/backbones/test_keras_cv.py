"""KerasCV backbones: which layers train, whose statistics count, weights from files."""

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.backbones import KerasCVFeatures
from sepc_tf.checkpoints import load_backbone_weights, named_variables
from sepc_tf.errors import CheckpointError


def tiny_resnet():
    return keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 16, 16, 16],
        stackwise_blocks=[1, 1, 1, 1],
        stackwise_strides=[1, 2, 2, 2],
        block_type="basic_block",
        include_rescaling=False,
        input_shape=(None, None, 3),
    )


def images(seed=0, batch=4):
    return tf.constant(np.random.default_rng(seed).normal(size=(batch, 64, 64, 3)), tf.float32)


def values(layer):
    return {name: np.array(v) for name, v in named_variables(layer).items()}


def is_norm(name):
    return name.split("/")[-1] in ("gamma", "beta")


def test_maps_have_the_strides_8_16_and_32():
    layer = KerasCVFeatures(tiny_resnet())
    assert [tuple(m.shape) for m in layer(images())] == [
        (4, 8, 8, 16),
        (4, 4, 4, 16),
        (4, 2, 2, 16),
    ]


@pytest.mark.parametrize("frozen_stages", [-1, 1, 4])
@pytest.mark.parametrize("norm", ["frozen", "eval", "sync"])
def test_stages_and_norms_train_as_configured(frozen_stages, norm):
    layer = KerasCVFeatures(tiny_resnet(), frozen_stages, norm)
    trainable = {id(v) for v in layer.trainable_variables}
    named = named_variables(layer)
    trains = {name for name, v in named.items() if id(v) in trainable}
    kernels = [name for name in named if name.endswith("kernel")]
    frozen = {-1: 0, 1: 3, 4: len(kernels)}[frozen_stages]  # the stem and one block
    assert len(kernels) - len([n for n in kernels if n in trains]) == frozen
    if norm == "frozen":
        assert not any(is_norm(name) for name in trains)
    else:
        assert sum(is_norm(name) for name in trains) == 2 * (len(kernels) - frozen)

    before = values(layer)
    layer(images(), training=True)
    moved = {n for n, v in values(layer).items() if (v != before[n]).any()}
    if norm == "sync":
        assert len(moved) == 2 * (len(kernels) - frozen)  # the statistics of what is not frozen
    else:
        assert not moved


def test_sync_statistics_are_those_of_all_replicas(two_replicas):
    data = images(batch=4)
    keras.utils.set_random_seed(0)
    single = KerasCVFeatures(tiny_resnet(), norm="sync")
    wanted = [m.numpy() for m in single(data, training=True)]
    with two_replicas.scope():
        keras.utils.set_random_seed(0)
        double = KerasCVFeatures(tiny_resnet(), norm="sync")
        for name, variable in named_variables(double).items():
            if not name.split("/")[-1].startswith("moving"):
                variable.assign(values(single)[name])
    halves = two_replicas.experimental_distribute_values_from_function(
        lambda context: data[2 * context.replica_id_in_sync_group :][:2]
    )
    got = two_replicas.run(lambda x: double(x, training=True), args=(halves,))
    for maps, want in zip(got, wanted):
        parts = tf.concat(two_replicas.experimental_local_results(maps), axis=0)
        np.testing.assert_allclose(parts, want, rtol=2e-3, atol=2e-4)
    for name, value in values(double).items():
        np.testing.assert_allclose(value, values(single)[name], rtol=2e-3, atol=1e-5, err_msg=name)


def test_a_missing_level_and_an_unknown_norm_are_named():
    with pytest.raises(ValueError, match=r"no level P1; got .*frozen_stages=0 freezes up to P1"):
        KerasCVFeatures(tiny_resnet(), frozen_stages=0)
    with pytest.raises(ValueError, match="norm must be one of"):
        KerasCVFeatures(tiny_resnet(), norm="batch")


def test_weights_that_keras_saved_are_loaded(tmp_path):
    source = tiny_resnet()
    source.save_weights(tmp_path / "backbone.weights.h5")
    layer = KerasCVFeatures(tiny_resnet())
    load_backbone_weights(layer, tmp_path / "backbone.weights.h5")
    wanted = source(images())
    deepest = layer(images())[-1]
    np.testing.assert_array_equal(deepest, wanted)
    (tmp_path / "other.weights.h5").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"other.weights.h5"):
        load_backbone_weights(layer, tmp_path / "other.weights.h5")
    np.savez(tmp_path / "torchvision.npz", **{"conv1.weight": np.zeros([1])})
    with pytest.raises(CheckpointError, match=r"KerasCV backbone.*weights.h5"):
        load_backbone_weights(layer, tmp_path / "torchvision.npz")
