"""Fitted anchors against all anchors there are, and against boxes whose best anchors are known."""

import dataclasses

import numpy as np
import pytest
from perturbed import random_dataset
from tiny_run import CONFIG

from sepc_tf.analysis.anchors import Boxes, best_ious, fit_anchors, resized_boxes
from sepc_tf.config import load_config
from sepc_tf.data.config import DataConfig
from sepc_tf.data.preprocess import resized_size
from sepc_tf.errors import ConfigError, DatasetError
from sepc_tf.ops.anchors import AnchorGenerator
from sepc_tf.ops.boxes import pairwise_iou

pytestmark = pytest.mark.same_on_both_stacks


def boxes_in(height, width, count=40, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.9, (count, 2)) * (width, height)
    high = low + rng.uniform(0.02, 1, (count, 2)) * ((width, height) - low)
    return Boxes(np.concatenate([low, high], 1), np.tile([float(height), width], (count, 1)))


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_the_nearest_anchors_hold_the_best_of_all(convention):
    height, width, divisor = 70, 130, 32
    boxes = boxes_in(height, width)
    generator = AnchorGenerator(
        strides=(8, 16, 32), octave_base=2.0, scales_per_octave=2, convention=convention
    )
    padded = [-(-side // divisor) * divisor for side in (height, width)]
    sizes = [tuple(-(-side // stride) for side in padded) for stride in generator.strides]
    everywhere = np.concatenate([anchors.numpy() for anchors in generator(sizes)])
    ious = pairwise_iou(boxes.xyxy.astype(np.float32), everywhere, convention).numpy()
    found = best_ious(boxes, generator, divisor)
    np.testing.assert_allclose(found, ious.max(1), rtol=1e-5)
    assert found.min() < 0.5 < found.max()


def test_boxes_are_resized_as_training_does_it():
    dataset = random_dataset(4, images=4)
    image = dataclasses.replace(dataset.images[0], height=200, width=333)
    dataset = dataclasses.replace(dataset, images=(image, dataset.images[-1]))
    data = DataConfig(short_side=[100, 150], long_side=210)
    boxes = resized_boxes(dataset, data)
    number = len(image.boxes)
    assert boxes.xyxy.shape == (2 * number, 4), "the last image is empty"
    for part, side in ((slice(0, number), 100), (slice(number, None), 150)):
        size = resized_size(200, 333, side, 210).numpy()
        np.testing.assert_array_equal(boxes.sizes[part], np.tile(size, (number, 1)))
        factor = (size / (200, 333))[[1, 0, 1, 0]]
        np.testing.assert_allclose(boxes.xyxy[part], image.boxes * factor)
    data = DataConfig(short_side=[100, 140], short_side_mode="range", long_side=500)
    assert resized_boxes(dataset, data).sizes[::number, 0].tolist() == [100, 110, 120, 130, 140]


def of_shape(dataset, width, height):
    """All boxes as large as this, at the places where they were."""
    images = tuple(
        dataclasses.replace(
            image,
            boxes=np.concatenate([image.boxes[:, :2], image.boxes[:, :2] + [width, height]], 1),
        )
        for image in dataset.images
    )
    return dataclasses.replace(dataset, images=images)


def config(*overrides):
    same_size = ["data.short_side=[300]", "data.long_side=300"]
    return load_config(CONFIG, [*same_size, *overrides])


def test_boxes_of_one_shape_get_anchors_of_that_shape():
    dataset = of_shape(random_dataset(5), width=40, height=20)
    report = fit_anchors(dataset, config("detector.options.anchors.scales_per_octave=1"))
    options = report.fitted.options
    assert 0.5 in options.ratios
    sides = 8 * options.octave_base * 2.0 ** np.arange(5)
    assert np.abs(np.log2(sides / np.sqrt(800))).min() < 0.1
    assert report.fitted.recall == 1 and report.fitted.mean_iou > report.now.mean_iou
    assert report.now.mean_iou == pytest.approx(
        best_ious(report.boxes, AnchorGenerator(scales_per_octave=1)).mean()
    )


def test_what_is_printed_is_a_config_that_has_these_anchors(tmp_path):
    report = fit_anchors(random_dataset(6), config("detector.options.anchors.scales=[6.0, 9.0]"))
    head, _, lines = report.text().partition("\n\n")
    assert f"{100 * report.fitted.recall:.1f} %" in head and f"{report.now.mean_iou:.3f}" in head
    (tmp_path / "mine.yaml").write_text(f"_base_: {CONFIG}\n{lines}\n")
    anchors = load_config(tmp_path / "mine.yaml").detector.options.anchors
    assert anchors == report.fitted.options and anchors.scales_per_octave == 2
    assert report.fitted.mean_iou > report.now.mean_iou


def test_anchors_that_nothing_beats_stay():
    dataset = random_dataset(7)
    fitted = fit_anchors(dataset, config()).fitted.options
    ratios = ", ".join(map(str, fitted.ratios))
    again = fit_anchors(
        dataset,
        config(
            f"detector.options.anchors.octave_base={fitted.octave_base}",
            f"detector.options.anchors.ratios=[{ratios}]",
        ),
    )
    assert again.fitted == again.now


def test_what_cannot_be_fitted_is_named():
    dataset = random_dataset(8)
    with pytest.raises(ConfigError, match="fsaf has no anchors to fit"):
        fit_anchors(dataset, load_config("fsaf_r50_baseline_1x"))
    empty = dataclasses.replace(dataset, images=dataset.images[-1:])
    with pytest.raises(DatasetError, match="no box to train on"):
        fit_anchors(empty, config())
