"""PConv in the backbone of a stock KerasHub RetinaNetObjectDetector (default stack only)."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

keras_hub = pytest.importorskip("keras_hub", reason="needs the extra kerashub (Keras 3)")

from sepc_tf.kerashub import PConvBackbone  # noqa: E402
from sepc_tf.layers.pconv import PConv  # noqa: E402

README = Path(__file__).parents[1] / "README.md"
SIZE = (64, 96)
LEVELS = ["P3", "P4", "P5", "P6", "P7"]


def tiny_pyramid(dtype=None):
    """KerasHub's own backbone with FPN, as small as it gets."""
    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 8, 8, 8],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(*SIZE, 3),
        dtype=dtype,
    )
    return keras_hub.models.RetinaNetBackbone(
        encoder, min_level=3, max_level=7, use_p5=False, image_shape=(*SIZE, 3), dtype=dtype
    )


def detector(backbone, **options):
    model = keras_hub.models.RetinaNetObjectDetector(
        backbone,
        num_classes=3,
        bounding_box_format="xyxy",
        pre_logits_num_conv_layers=1,
        **options,
    )
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        box_loss=keras.losses.Huber(reduction="sum"),
        classification_loss=keras.losses.BinaryFocalCrossentropy(from_logits=True, reduction="sum"),
        jit_compile=False,
    )
    return model


def batch():
    rng = np.random.default_rng(0)
    labels = {
        "boxes": np.float32([[[8, 8, 40, 44]], [[30, 20, 90, 60]], [[2, 4, 34, 36]], [[-1] * 4]]),
        "labels": np.float32([[0], [1], [2], [-1]]),
    }
    return rng.uniform(0, 1, (4, *SIZE, 3)).astype(np.float32), labels


@pytest.mark.parametrize("deformable", [False, True])
def test_every_level_has_gone_through_pconv(deformable):
    images, _ = batch()
    pyramid = tiny_pyramid()
    backbone = PConvBackbone(pyramid, num_convs=2, filters=8, deformable=deformable)
    pconvs = [PConv(8, deformable=deformable) for _ in range(2)]
    maps = want = [pyramid(images)[level] for level in LEVELS]
    for pconv in pconvs:
        want = pconv(want)
    rng = np.random.default_rng(0)
    for i, pconv in enumerate(pconvs):
        weights = [np.abs(rng.normal(0.1, 0.1, w.shape)) for w in pconv.get_weights()]
        pconv.set_weights(weights)
        backbone.get_layer(f"pconv_{i}").set_weights(weights)
    want = pconvs[1](pconvs[0](maps))
    got = backbone(images)
    assert [*got] == LEVELS == [*backbone.pyramid_outputs]
    assert (backbone.min_level, backbone.max_level) == (3, 7)
    for level, expected in zip(LEVELS, want):
        assert np.ptp(expected) > 0
        np.testing.assert_allclose(got[level], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_stock_code_trains_on_two_replicas_predicts_and_saves(two_replicas, tmp_path):
    images, labels = batch()
    with two_replicas.scope():
        backbone = PConvBackbone(tiny_pyramid(), num_convs=1, deformable=True)
        decoder = keras_hub.layers.NonMaxSuppression(
            "xyxy", from_logits=True, confidence_threshold=0.01
        )
        model = detector(backbone, prediction_decoder=decoder)
    before = [w.numpy() for w in backbone.get_layer("pconv_0").trainable_weights]
    losses = model.fit(images, labels, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for weight, old in zip(backbone.get_layer("pconv_0").trainable_weights, before):
        assert (weight.numpy() != old).any(), weight.path

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert type(loaded) is keras_hub.models.RetinaNetObjectDetector
    assert type(loaded.backbone) is PConvBackbone
    got, want = loaded(images), model(images)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert (model.predict(images, verbose=0)["num_detections"] > 0).all()
    got, want = (m.decode_predictions(m(images), images) for m in (loaded, model))
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.slow
def test_mixed_precision():
    backbone = PConvBackbone(tiny_pyramid("mixed_bfloat16"), num_convs=1)
    assert backbone.get_layer("pconv_0").compute_dtype == "bfloat16"
    images, labels = batch()
    model = detector(backbone)
    losses = model.fit(images, labels, batch_size=4, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_a_backbone_without_a_pyramid_is_refused():
    inputs = keras.Input((8, 8, 3))
    plain = keras_hub.models.FeaturePyramidBackbone(inputs, keras.layers.Conv2D(2, 1)(inputs))
    with pytest.raises(ValueError, match=r"must have pyramid_outputs.*got FeaturePyramidBackbone"):
        PConvBackbone(plain)


@pytest.mark.slow
def test_the_example_of_the_readme(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "PConvBackbone" in block]
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).uniform(0, 1, (2, 256, 256, 3)).astype(np.float32)
    labels = {
        "boxes": np.float32([[[16, 16, 120, 140]], [[60, 40, 200, 250]]]),
        "labels": np.float32([[3], [7]]),
    }
    names = {"dataset": tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)}
    exec(example, names)
    (saved,) = tmp_path.glob("*.keras")
    got = keras.saving.load_model(saved, compile=False)(images)
    for name, want in names["model"](images).items():
        np.testing.assert_array_equal(got[name], want, err_msg=name)
