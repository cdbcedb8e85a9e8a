"""Faster R-CNN as a whole; `test_zoo.py` trains, saves and exports it as all detectors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_detector import TinyBackbone, random_batch

from sepc_tf import compat
from sepc_tf.checkpoints import named_variables
from sepc_tf.config import BackboneConfig, DetectorConfig, HeadConfig
from sepc_tf.detectors.anchor_based import AnchorOptions
from sepc_tf.detectors.two_stage.faster_rcnn import FasterRCNN, FasterRCNNOptions
from sepc_tf.detectors.two_stage.rpn import ProposalOptions, RPNOptions
from sepc_tf.necks import FPN
from sepc_tf.zoo import build_detector


def tiny(convention="modern", **options):
    few = ProposalOptions(nms_pre=40, nms_post=40, max_proposals=40)
    rpn = RPNOptions(anchors=AnchorOptions(scales=[2.0]), sampled=16)
    settings = {"units": 8, "sampled": 16, "train_proposals": few, "test_proposals": few}
    return FasterRCNN.from_parts(
        TinyBackbone(name="backbone"),
        FPN(8, 4, name="fpn"),
        8,
        num_classes=3,
        convention=convention,
        options=FasterRCNNOptions(rpn=rpn, **{**settings, **options}),
        name="detector",
    )


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(0)
    return tiny()


def losses(detector, batch):
    return {k: float(v) for k, v in detector.batch_losses(batch, training=False).items()}


def test_what_is_sampled_depends_on_the_step_and_the_seed_only(detector):
    batch = random_batch(batch=2)
    detector.compile(keras.optimizers.SGD(0.0))
    first = losses(detector, batch)
    assert losses(detector, batch) == first
    detector.optimizer.iterations.assign(5)
    later = losses(detector, batch)
    assert later != first
    # A run that continues: another object, the same weights and the optimizer's step.
    again = tiny()
    for name, variable in named_variables(again).items():
        variable.assign(named_variables(detector)[name])
    again.compile(keras.optimizers.SGD(0.0))
    again.optimizer.iterations.assign(5)
    assert losses(again, batch) == later
    again.sampling_seed = 2**32 - 1  # the largest `train.seed`
    assert losses(again, batch) != later


def test_a_step_after_a_restart_is_the_step_without_one():
    """Everything a checkpoint holds, put into another detector: the same samples, bit for bit."""
    batch = random_batch(batch=2)

    def started(seed):
        config = DetectorConfig(
            type="faster_rcnn",
            backbone=BackboneConfig(depth=18, width=4, frozen_stages=-1, norm="eval"),
            necks=[{"type": "fpn", "min_level": 2, "num_levels": 4}],
            head=HeadConfig(filters=8),
            options={"units": 8, "sampled": 8, "rpn": {"anchors": {"scales": [2.0]}, "sampled": 8}},
        )
        keras.utils.set_random_seed(0)
        detector = build_detector(config, num_classes=3, seed=seed)
        detector.compile(keras.optimizers.SGD(0.05, momentum=0.9))
        return detector

    def state(detector):
        optimizer = compat.optimizer_variables(detector.optimizer)
        return [np.array(v) for v in [*named_variables(detector).values(), *optimizer]]

    whole = started(seed=3)
    whole.train_step(batch)
    saved = state(whole)
    whole.train_step(batch)
    ends = []
    for seed in (3, 4):
        again = started(seed)
        variables = [
            *named_variables(again).values(),
            *compat.optimizer_variables(again.optimizer),
        ]
        for variable, value in zip(variables, saved, strict=True):
            variable.assign(value)
        again.train_step(batch)
        ends.append(state(again))
    for end, resumed in zip(state(whole), ends[0], strict=True):
        np.testing.assert_array_equal(resumed, end)
    assert any((other != end).any() for other, end in zip(ends[1], ends[0]))


def test_images_without_objects_train(detector):
    batch = random_batch(batch=2)
    batch = {**batch, "boxes": batch["boxes"] * 0 - 1, "labels": batch["labels"] * 0 - 1}
    got = losses(detector, batch)
    assert got["box"] == got["rpn_box"] == 0.0
    assert got["classification"] > 0.1 and got["rpn_classification"] > 0.1


def test_given_proposals_are_detected_in_pixels_of_the_original_image(detector):
    batch = random_batch(batch=2)
    pyramid, _ = detector.pyramid_and_outputs(batch["images"], training=False)
    boxes = tf.constant([[[4.0, 4, 40, 40], [0, 0, 0, 0]]] * 2)
    present = tf.constant([[True, False]] * 2)
    detector.score_threshold = 0.0
    sizes = tf.constant(batch["image_sizes"])
    plain = detector.detect_in(pyramid, boxes, present, sizes)
    double = detector.detect_in(pyramid, boxes, present, sizes, 2 * sizes)
    assert plain["num_detections"].numpy().tolist() == [3, 3]  # of each class the real box
    np.testing.assert_allclose(double["boxes"], 2 * plain["boxes"], rtol=1e-5)


def test_all_parts_of_one_convention():
    detector = tiny("mmdet1")
    (stage,) = detector.roi.stages
    assert stage.pooler.convention == stage.matcher.convention == "mmdet1"
    assert detector.convention == stage.coder.convention == "mmdet1"
    with pytest.raises(ValueError, match="coder and stage 0 must share one convention"):
        config = {**detector.get_config(), "roi": tiny().get_config()["roi"]}
        FasterRCNN.from_config(config)
