"""Every detector with every head: build, one training step, predict, save, load, export."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints import named_variables
from sepc_tf.config import (
    BackboneConfig,
    Config,
    ConfigError,
    DataConfig,
    DetectorConfig,
    HeadConfig,
)
from sepc_tf.export import export
from sepc_tf.inference import detect_images
from sepc_tf.runs import Run
from sepc_tf.zoo import DETECTORS, VARIANTS, build_backbone, build_detector

IMAGE = (64, 96)


def tiny(detector_type, variant, **options):
    return DetectorConfig(
        type=detector_type,
        backbone=BackboneConfig(depth=18, width=4, frozen_stages=-1, norm="sync"),
        head=HeadConfig(variant=variant, filters=8, num_convs=2),
        **options,
    )


def batch():
    generator = np.random.default_rng(0)
    return {
        "images": tf.constant(generator.normal(size=(2, *IMAGE, 3)), tf.float32),
        "image_sizes": tf.constant([[64, 96], [60, 90]]),
        "original_sizes": tf.constant([[64, 96], [60, 90]]),
        "boxes": tf.constant([[[4.0, 4.0, 40.0, 44.0], [30.0, 8.0, 90.0, 60.0]], [[-1.0] * 4] * 2]),
        "labels": tf.constant([[0, 2], [-1, -1]]),
        "image_ids": tf.constant([1, 2], tf.int64),
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("detector_type", DETECTORS)
def test_everything_buildable_trains_predicts_saves_and_loads(detector_type, variant, tmp_path):
    keras.utils.set_random_seed(0)
    detector = build_detector(tiny(detector_type, variant, score_threshold=0.0), num_classes=3)
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9), clip_norm=35.0, weight_decay=1e-4)
    before = {name: v.numpy() for name, v in named_variables(detector).items()}
    logs = detector.train_step(batch())
    assert float(logs["non_finite"]) == 0.0 and float(logs["loss"]) > 0.0
    after = {name: v.numpy() for name, v in named_variables(detector).items()}
    unchanged = [
        name
        for name in before
        if np.array_equal(before[name], after[name])
        # Nothing flows to an offset's kernel whose samples are all outside the 1 x 1 top level.
        and not ("offset" in name or name.endswith(("moving_mean", "moving_variance")))
    ]
    assert not unchanged
    assert all(np.isfinite(value).all() for value in after.values())

    found = detector.predict_step(batch())
    assert found["boxes"].shape == (2, 100, 4) and int(found["num_detections"][0]) > 0
    detector.save(tmp_path / "detector.keras")
    loaded = keras.models.load_model(tmp_path / "detector.keras", compile=False)
    for name, value in loaded.predict_step(batch()).items():
        np.testing.assert_allclose(value.numpy(), found[name].numpy(), rtol=1e-5, atol=1e-5)

    config = Config(data=DataConfig(test_short_side=64, long_side=96))
    categories = [{"id": i, "name": str(i)} for i in range(3)]
    export(Run(config, detector, categories, tmp_path, 0), tmp_path / "served")
    images = np.random.default_rng(1).integers(0, 256, (1, 50, 70, 3)).astype(np.uint8)
    expected = detect_images(detector, config.data, tf.constant(images))
    served = tf.saved_model.load(tmp_path / "served").signatures["serving_default"]
    for name, value in served(images=tf.constant(images)).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("detector_type", DETECTORS)
def test_a_step_on_two_replicas_equals_one_device(detector_type, two_replicas):
    def trained(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            detector = build_detector(tiny(detector_type, "sepc_lite"), num_classes=3)
            detector.compile(keras.optimizers.SGD(0.01), clip_norm=35.0, weight_decay=1e-4)
        data = tf.data.Dataset.from_tensors(batch()).with_options(unsharded())
        detector.fit(data, verbose=0)
        return {name: v.numpy() for name, v in named_variables(detector).items()}

    one, two = trained(tf.distribute.get_strategy()), trained(two_replicas)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def unsharded():
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_the_authors_convention_leaves_the_extra_convolutions_unpadded(convention):
    detector = build_detector(tiny("retinanet", "sepc", convention=convention), num_classes=3)
    outputs = detector(tf.zeros([1, 384, 384, 3]))
    border = 2 if convention == "mmdet1" else 0
    assert [m.shape[1] for m in outputs["box"]] == [s - border for s in (48, 24, 12, 6, 3)]


def test_a_keras_cv_backbone_can_be_named():
    options = {"stackwise_channels": [8, 16, 32, 64], "stackwise_depth": [1, 1, 1, 1]}
    config = tiny("retinanet", "sepc_lite")
    config.backbone = BackboneConfig(type="keras_cv>CSPDarkNetBackbone", options=options)
    outputs = build_detector(config, num_classes=3)(tf.zeros([1, 64, 96, 3]))
    assert [tuple(m.shape) for m in outputs["box"]][:2] == [(1, 8, 12, 36), (1, 4, 6, 36)]


@pytest.mark.parametrize("name", ["resnett", "keras_cv>Nothing", "other>ResNet"])
def test_an_unknown_backbone_is_a_clear_error(name):
    with pytest.raises(ConfigError, match="expected resnet or keras_cv>NAME"):
        build_backbone(BackboneConfig(type=name))
