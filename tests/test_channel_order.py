"""A network that sees BGR finds what its twin that sees RGB finds, from the file to the boxes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sepc_tf.checkpoints import named_variables
from sepc_tf.config import BackboneConfig, Config, DetectorConfig, HeadConfig
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.config import AugmentationConfig, DataConfig
from sepc_tf.data.sources import evaluation_pipeline, training_pipeline
from sepc_tf.evaluation.origin import detections_origin
from sepc_tf.evaluation.run import Evaluator
from sepc_tf.export.saved_model import Server
from sepc_tf.predict import Predictor
from sepc_tf.runs import Run
from sepc_tf.zoo import build_detector

MEAN, STD = [122.7717, 115.9465, 102.9801], [60.0, 50.0, 40.0]
CATEGORIES = [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]


def config_of(channel_order):
    turned = -1 if channel_order == "bgr" else 1
    detector = DetectorConfig(
        backbone=BackboneConfig(depth=18, width=4, frozen_stages=-1, norm="eval"),
        head=HeadConfig(filters=8, num_convs=1),
        score_threshold=0.0,
        max_detections=20,
    )
    data = DataConfig(
        channel_order=channel_order,
        mean=MEAN[::turned],
        std=STD[::turned],
        short_side=[64],
        test_short_side=64,
        long_side=96,
        # What expanding puts around an image has the colour of the mean.
        augmentation=AugmentationConfig(expand_probability=1.0, hue=0.2, saturation=0.3),
    )
    config = Config(detector=detector, data=data)
    config.train.batch_size = 2
    return config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(2):
        pixels = rng.integers(0, 256, (50, 70, 3), np.uint8) // [1, 2, 4]  # red above blue
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 70, "height": 50})
        box = {"image_id": number, "category_id": 2, "bbox": [10, 5, 30, 40]}
        annotations.append({"id": number + 1, **box})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    return CocoDataset.from_content(content, lambda name: (root / name).read_bytes, "made up")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The detector that sees RGB; that with the kernel of its first convolution turned round."""
    keras.utils.set_random_seed(0)
    rgb, bgr = (build_detector(config_of(order).detector, 2) for order in ("rgb", "bgr"))
    for name, variable in named_variables(bgr).items():
        value = named_variables(rgb)[name].numpy()
        variable.assign(value[:, :, ::-1] if name == "backbone/conv1/kernel" else value)
    configs = [config_of(order) for order in ("rgb", "bgr")]
    folder = tmp_path_factory.mktemp("runs")
    return [Run(c, d, CATEGORIES, folder, 0) for c, d in zip(configs, (rgb, bgr))]


def test_training_sees_the_same(dataset, runs):
    losses = []
    for run in runs:
        (batch,) = training_pipeline(dataset, run.config).for_epoch(0)
        run.detector.compile(keras.optimizers.SGD(0.0))
        losses.append(float(run.detector.train_step(batch)["loss"]))
        blue = batch["images"][..., 2 if run.config.data.channel_order == "rgb" else 0]
        assert tf.reduce_mean(tf.cast(blue, tf.float32)) < tf.reduce_mean(
            tf.cast(batch["images"], tf.float32)
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_evaluation_prediction_and_serving_find_the_same(dataset, runs):
    pixels = dataset.images[0].read()
    evaluated, found = [], []
    tf.config.run_functions_eagerly(True)
    try:
        for run in runs:
            pipeline = evaluation_pipeline(dataset, run.config)
            evaluator = Evaluator(run.detector, dataset, pipeline, tf.distribute.get_strategy())
            evaluated.append([[r["score"], *r["bbox"]] for r in evaluator.detections()])
            predicted = Predictor(run)(pixels)
            server = Server(run.detector, run.config.data)
            served = server.serve(tf.constant(pixels[None]))
            np.testing.assert_allclose(served["boxes"][0], predicted.boxes, atol=1e-3)
            found.append(np.column_stack([predicted.scores, predicted.boxes]))
    finally:
        tf.config.run_functions_eagerly(False)
    assert len(evaluated[0]) == 2 * len(found[0]) == 40
    np.testing.assert_allclose(evaluated[1], evaluated[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-3)
    # And the order matters: with the other one it finds something else.
    runs[1].config.data.channel_order = "rgb"
    other = Predictor(runs[1])(pixels)
    runs[1].config.data.channel_order = "bgr"
    assert np.abs(other.boxes - found[0][:, 1:]).max() > 1


def test_detections_of_another_order_are_not_up_to_date(dataset, tmp_path):
    (tmp_path / "best.npz").write_bytes(b"weights")
    data = config_of("rgb").data
    origins = []
    for order in ("rgb", "bgr"):
        data.channel_order = order
        origins.append(
            detections_origin(config_of("rgb").detector, data, tmp_path / "best.npz", dataset)
        )
    assert origins[0] != origins[1]
