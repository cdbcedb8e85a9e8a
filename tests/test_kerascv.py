"""SEPC's parts in a stock KerasCV RetinaNet: wiring, training and saving, all by KerasCV's code."""

import re
from pathlib import Path

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf
from tiny_kerascv import LEVELS, TinyKerasCVBackbone, compile_stock, stock_batch, stock_retinanet

from sepc_tf import compat, kerascv
from sepc_tf.detectors import PredictionHead
from sepc_tf.necks import FPN, SEPC, ConvTowers

README = Path(__file__).parents[1] / "README.md"
SEPC_VARIANTS = ("pconv", "pconv_ibn", "sepc_lite", "sepc")


def tiny_parts(variant="sepc_lite", **options):
    return kerascv.retinanet_parts(3, variant, filters=8, num_convs=1, **options)


def fit(model, epochs=1):
    """The losses of one step an epoch."""
    return model.fit(*stock_batch(), batch_size=4, epochs=epochs, verbose=0).history["loss"]


def assert_same_outputs(got, want, images):
    got, want = got(images), want(images)
    assert got.keys() == want.keys() == {"box", "classification"}
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("variant", ["baseline", "dcn", *SEPC_VARIANTS])
def test_the_stock_model_computes_fpn_neck_and_head(variant):
    # The same weights in this package's own parts, put together by hand.
    model = stock_retinanet(**tiny_parts(variant))
    fpn = FPN(8)
    if variant in SEPC_VARIANTS:
        neck = SEPC.variant(variant, filters=8, num_convs=1)
    else:
        neck = ConvTowers(8, 1, deformable=variant == "dcn")
    head = PredictionHead(num_classes=3, num_anchors=9)
    images, _ = stock_batch()
    features = model.feature_extractor(images)
    maps = [features[level] for level in LEVELS]
    head(neck(fpn(maps)))
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.2, w.shape) for w in model.feature_pyramid.get_weights()]
    weights = [np.abs(w) + 0.5 if w.ndim == 1 else w for w in weights]  # variances are positive
    model.feature_pyramid.set_weights(weights)
    fpn.set_weights(weights[: len(fpn.weights)])
    neck.set_weights(weights[len(fpn.weights) :])
    heads = (model.classification_head, model.box_head)
    head.set_weights([w for part in heads for w in part.get_weights()])
    want = head(neck(fpn(maps)))
    got = model(images)
    for name, width in (("classification", 3), ("box", 4)):
        rows = np.concatenate([np.reshape(level, (4, -1, width)) for level in want[name]], 1)
        assert np.ptp(rows) > 0.1
        np.testing.assert_allclose(got[name], rows, rtol=1e-5, atol=1e-5)
    # Every score starts as 0.01.
    bias = model.classification_head.get_weights()[1]
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), 0.01, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (96, 160), (200, 264)])
def test_every_level_has_as_many_cells_as_stock_anchors(size):
    pyramid = tiny_parts()["feature_pyramid"]
    backbone = TinyKerasCVBackbone((*size, 3))
    shapes = {level: tuple(backbone.get_layer(level).output.shape) for level in LEVELS}
    anchors = keras_cv.models.RetinaNet.default_anchor_generator("xyxy")
    counts = [len(boxes) for boxes in anchors(image_shape=(*size, 3)).values()]
    levels = pyramid.compute_output_shape(shapes)
    assert [9 * cls[1] * cls[2] for cls, _ in levels] == counts
    assert [9 * box[1] * box[2] for _, box in levels] == counts


def test_another_number_of_anchors():
    anchors = keras_cv.layers.AnchorGenerator(
        bounding_box_format="xyxy",
        sizes=[32.0, 64.0, 128.0, 256.0, 512.0],
        aspect_ratios=[0.5, 1.0],
        scales=[1.0],
        strides=[8, 16, 32, 64, 128],
    )
    model = stock_retinanet(**tiny_parts("baseline", num_anchors=2), anchor_generator=anchors)
    count = 2 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1)
    assert {tuple(output.shape) for output in model.outputs} == {(None, count, 3), (None, count, 4)}


@pytest.mark.slow
@pytest.mark.parametrize(  # without and with norms
    "variant", [pytest.param("pconv", marks=pytest.mark.same_on_both_stacks), "sepc"]
)
def test_stock_code_trains_on_two_replicas_and_saves(variant, two_replicas, tmp_path):
    images, _ = stock_batch()
    with two_replicas.scope():
        model = compile_stock(stock_retinanet(**tiny_parts(variant)))
    losses = fit(model, epochs=4)
    assert losses[-1] < losses[0]
    # The statistics are those of the global batch: equal on both replicas, and no longer zero.
    means = [v for v in model.feature_pyramid.weights if "moving_mean" in v.name]
    assert len(means) == (0 if variant == "pconv" else 3)
    for mean in map(compat.variable_value, means):
        first, second = (np.array(v) for v in two_replicas.experimental_local_results(mean))
        np.testing.assert_array_equal(first, second)
        assert first.any()

    model.save(tmp_path / "model.keras")
    loaded = kerascv.load_model(tmp_path / "model.keras")
    assert type(loaded) is keras_cv.models.RetinaNet
    assert_same_outputs(loaded, model, images)


@pytest.mark.slow
def test_a_loaded_model_predicts_and_trains_on(tmp_path):
    images, _ = stock_batch()
    decoder = keras_cv.layers.NonMaxSuppression(
        "xyxy", from_logits=True, confidence_threshold=0.001
    )
    model = stock_retinanet(**tiny_parts(), prediction_decoder=decoder)
    model.save(tmp_path / "model.keras")
    loaded = kerascv.load_model(tmp_path / "model.keras")
    got, want = (m.predict(images, verbose=0) for m in (loaded, model))
    assert (want["num_detections"] > 0).all()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)

    losses = fit(compile_stock(loaded), epochs=4)
    assert losses[-1] < losses[0]
    # The weights alone, as Keras' own callbacks write them.
    loaded.save_weights(tmp_path / "model.weights.h5")
    model.load_weights(tmp_path / "model.weights.h5")
    assert_same_outputs(model, loaded, images)


@pytest.mark.slow
def test_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        backbone, parts = TinyKerasCVBackbone(), tiny_parts()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model = compile_stock(stock_retinanet(backbone, **parts))
    assert model.feature_pyramid.neck.compute_dtype == "float16"
    assert {tf.as_dtype(w.dtype) for w in model.trainable_weights} == {tf.float32}
    assert {tf.as_dtype(output.dtype) for output in model.outputs} == {tf.float32}
    losses = fit(model, epochs=4)
    assert losses[-1] < losses[0]


def test_keras_alone_says_how_to_load(tmp_path):
    stock_retinanet(**tiny_parts("baseline")).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"read from a file by sepc_tf\.kerascv\.load_model"):
        keras.saving.load_model(tmp_path / "model.keras")


def test_other_models_are_refused(tmp_path):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "dense.keras")
    with pytest.raises(ValueError, match=r"dense\.keras: expected a keras_cv.models.RetinaNet"):
        kerascv.load_model(tmp_path / "dense.keras")
    stock_retinanet().save(tmp_path / "stock.keras")
    with pytest.raises(ValueError, match=r"has no parts of sepc_tf\.kerascv\.retinanet_parts"):
        kerascv.load_model(tmp_path / "stock.keras")


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"variant must be one of .*'sepc_lite'.*got 'sepc_li'"):
        kerascv.retinanet_parts(3, "sepc_li")
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        kerascv.retinanet_parts(0)
    with pytest.raises(ValueError, match=r"task must be one of .*got 'boxes'"):
        kerascv.TaskHead("boxes", 36)


@pytest.mark.slow
def test_the_example_of_the_readme(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "kerascv.retinanet_parts" in block]
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).uniform(0, 255, (2, 256, 256, 3)).astype(np.float32)
    labels = {
        "boxes": np.float32([[[16, 16, 120, 140]], [[60, 40, 200, 250]]]),
        "classes": np.float32([[3], [7]]),
    }
    names = {"dataset": tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)}
    exec(example, names)
    assert type(names["model"]) is keras_cv.models.RetinaNet
    (saved,) = tmp_path.glob("*.keras")
    assert_same_outputs(kerascv.load_model(saved), names["model"], images)
