"""Precisions below float32, each by its own runtime: what may differ, and by how much."""

import numpy as np
import pytest
import tensorflow as tf
from small_run import SIZE, need, small_run

from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.export import export
from sepc_tf.export.candidates import candidates
from sepc_tf.exported import RUNTIMES, ExportedModel, model_file
from sepc_tf.ops.boxes import pairwise_iou
from sepc_tf.predict import Predictor
from sepc_tf.runs import load_run, packaged_run

pytestmark = pytest.mark.same_on_both_stacks


def test_float16_is_the_detector_with_rounded_weights(tmp_path):
    need("litert")
    run = small_run("retinanet", "baseline")
    file = model_file(export(run, tmp_path / "model", "litert", "float16", SIZE))
    images = np.random.default_rng(0).normal(0, 1, (1, *SIZE, 3)).astype(np.float32)
    boxes, scores = RUNTIMES["litert"](file, "float16")(images, np.int32([SIZE]))
    module = candidates(run.detector, SIZE)
    for layer in module.detector._flatten_layers():
        for name in ("kernel", "bias"):
            value = getattr(layer, name, None)
            if value is not None:
                rounded = np.float32(np.float16(tf.convert_to_tensor(value)))
                if hasattr(value, "assign"):
                    value.assign(rounded)
                else:  # made by folding
                    setattr(layer, name, tf.constant(rounded))
    expected = module.run(images, np.int32([SIZE]))
    np.testing.assert_allclose(scores, expected["scores"], rtol=0, atol=1e-5)
    # Anchors are rounded too: numbers from 128 on are multiples of 1/8 in half precision.
    np.testing.assert_allclose(boxes, expected["boxes"], rtol=0, atol=0.126)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The packaged detector with data to calibrate on, four other images, what is found there."""
    data = make_demo_dataset(tmp_path_factory.mktemp("demo") / "data", train_images=8, val_images=4)
    run = load_run(packaged_run("demo"), overrides=[f"data.directory={data}"])
    images = sorted((data / "val").iterdir())
    return run, images, [Predictor(run)(image) for image in images]


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_int8_finds_what_float32_finds(demo, format, tmp_path):
    # Twice what was measured: scores differ by up to 0.015, by 0.005 on the average. The least
    # overlap was 0.87. A sure detection must be there, at its place.
    need(format)
    run, images, expected = demo
    predictor = Predictor(ExportedModel(export(run, tmp_path / "model", format, "int8")))
    sure, differences = 0, []
    for image, truth in zip(images, expected):
        found = predictor(image)
        same_class = truth.classes[:, None] == found.classes
        overlap = np.where(same_class, pairwise_iou(truth.boxes, found.boxes), 0.0)
        for row in np.flatnonzero(truth.scores > 0.6):
            best = overlap[row].argmax()
            assert overlap[row, best] > 0.85
            differences.append(abs(found.scores[best] - truth.scores[row]))
            sure += 1
    assert sure > 8
    assert max(differences) < 0.03 and 1e-5 < np.mean(differences) < 0.01
