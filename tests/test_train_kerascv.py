"""The script that trains a stock KerasCV RetinaNet as a config of ours says."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf
from script_modules import load_script
from tiny_run import tiny_config

from sepc_tf.analysis.detections import run_detections
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.errors import ConfigError
from sepc_tf.evaluation.coco import evaluate_detections
from sepc_tf.files import read_json


@pytest.fixture(scope="module")
def script():
    return load_script("train_kerascv")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_dataset(tmp_path_factory.mktemp("demo"), train_images=4, val_images=4)


def config(data, *overrides):
    return tiny_config(
        data,
        "train.epochs=2",
        "train.ema_decay=0.9",
        "train.optimizer.weight_decay=0",
        "evaluation.iou_thresholds=[0.33]",
        *overrides,
    )


def test_it_leaves_a_run_whose_evaluation_can_be_compared(script, data, tmp_path):
    run_dir = tmp_path / "kerascv"
    metrics = script.train_kerascv(
        config(data, "detector.score_threshold=0.001"), run_dir, filters=8
    )
    assert metrics == read_json(run_dir / "evaluation/metrics.json")
    assert read_json(run_dir / "history.json")[0]["step"] == 2
    dataset, results = run_detections(run_dir)  # those that are there, or it would fail
    assert results and evaluate_detections(dataset, results, [0.33]).to_dict() == metrics
    with pytest.raises(ConfigError, match="holds a run"):
        script.train_kerascv(config(data), run_dir)


def test_boxes_come_back_in_pixels_of_the_original_images(script, data):
    """A model whose predictions are its anchors finds them at the original scale."""
    settings = config(data, "detector.score_threshold=0.0")
    model = script.build(settings, 10, 8)
    for variable in model.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    # Of the finest level's first anchor the score of one class is the highest.
    biases = model.classification_head.layers[-1].bias
    biases.assign(np.where(np.arange(90) == 3, 4.0, -9.0))
    _, results = script.evaluate(model, script.load_split(settings.data, "val"), settings)
    best = [result for result in results if result["score"] > 0.5]
    assert {result["category_id"] for result in best} == {4}
    # Images of 256 px are seen at 64 px: the 32 px anchor of ratio 0.5 is 181 px wide in them.
    sizes = np.array([result["bbox"][2:] for result in best])
    assert np.abs(sizes - [4 * 32 * 2**0.5, 4 * 32 * 0.5**0.5]).max(axis=1).min() < 1e-3


def test_stock_layers_unless_narrowed(script, data):
    stock = script.build(config(data), 10, None)
    assert isinstance(stock.box_head, keras_cv.models.retinanet.PredictionHead)
    assert isinstance(stock.feature_pyramid, keras_cv.models.retinanet.FeaturePyramid)
    assert script.build(config(data), 10, 8).count_params() < stock.count_params() / 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "detector.type=fsaf",
            "detector.type: 'fsaf': KerasCV's RetinaNet is trained with retinanet",
        ),
        ("train.strategy=mirrored", "train.strategy"),
        ("train.optimizer.weight_decay=0.1", "decoupled_weight_decay: False"),
    ],
)
def test_what_kerascv_has_not_is_refused(script, data, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        script.train_kerascv(config(data, override), tmp_path / "run")
