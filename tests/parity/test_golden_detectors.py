"""Targets, losses, gradients and decoding of the detectors against the authors' (golden data)."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from tiny_detector import tiny_detector

from sepc_tf.detectors import FSAF, FreeAnchor, RetinaNet
from sepc_tf.detectors.base import level_sizes
from sepc_tf.ops.matching import IGNORED

LEVELS = range(5)


@pytest.fixture(scope="module")
def recipe(golden_dir):
    sys.path.insert(0, str(golden_dir))
    try:
        import recipe
    finally:
        sys.path.pop(0)
    return recipe


def close(got, want, tolerance=1e-5):
    """Asserts a largest difference of `tolerance` relative to the largest value wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1e-30))


def to_nhwc(array):
    return tf.constant(array.transpose(0, 2, 3, 1))


def raw_outputs(case):
    """The class and box maps, before any activation, that the case was computed from."""
    inputs = case.inputs()
    return tuple(
        [to_nhwc(inputs[f"{case.name}.{kind}.{i}"]) for i in LEVELS] for kind in ("cls", "reg")
    )


def padded_batch(case):
    """The case's objects as a batch: 0-based labels, padded with -1."""
    boxes = [case.data[f"in.gt_bboxes.{i}"] for i in range(2)]
    labels = [case.data[f"in.gt_labels.{i}"] - 1 for i in range(2)]
    most = max(map(len, boxes)) + 2
    return {
        "boxes": tf.constant(
            [np.pad(b, ((0, most - len(b)), (0, 0)), constant_values=-1) for b in boxes]
        ),
        "labels": tf.constant([np.pad(x, (0, most - len(x)), constant_values=-1) for x in labels]),
        "image_sizes": tf.constant([m["img_shape"][:2] for m in case.config["img_metas"]]),
    }


def levels_of(case, name, axis=1):
    return np.concatenate([case.data[f"out.{name}.{i}"] for i in LEVELS], axis=axis)


def losses_and_gradients(detector, case):
    cls, reg = raw_outputs(case)
    batch = padded_batch(case)

    @tf.function
    def compute(cls, reg):
        with tf.GradientTape() as tape:
            tape.watch([cls, reg])
            box = [tf.nn.relu(x) for x in reg] if detector.head.box_activation else reg
            losses = detector.compute_losses({"classification": cls, "box": box}, batch)
            total = tf.add_n(list(losses.values()))
        return losses, tape.gradient(total, [cls, reg])

    return compute(cls, reg)


def check_gradients(case, gradients):
    for kind, maps in zip(("cls", "reg"), gradients):
        largest = max(np.abs(case.data[f"out.grad_{kind}.{i}"]).max() for i in LEVELS)
        for i in LEVELS:
            want = case.data[f"out.grad_{kind}.{i}"]
            np.testing.assert_allclose(
                maps[i].numpy().transpose(0, 3, 1, 2), want, rtol=0, atol=1e-5 * largest
            )


def test_retina_loss(recipe):
    case = recipe.load_case("retina_loss")
    detector = tiny_detector(RetinaNet, num_classes=5, convention="mmdet1")
    cls, reg = raw_outputs(case)
    outputs, batch = {"classification": cls, "box": reg}, padded_batch(case)
    for anchors, i in zip(detector.anchors(outputs), LEVELS):
        np.testing.assert_array_equal(anchors, case.data[f"out.anchors.{i}"])
    valid = detector.anchor_generator.valid(level_sizes(outputs), batch["image_sizes"])
    np.testing.assert_array_equal(valid, levels_of(case, "valid"))

    targets = detector.label_anchors(outputs, batch)
    np.testing.assert_array_equal(targets["classes"] + 1, levels_of(case, "labels"))
    np.testing.assert_array_equal(targets["matches"] != IGNORED, levels_of(case, "label_weights"))
    matched = targets["matches"].numpy() >= 0
    np.testing.assert_array_equal(matched, levels_of(case, "bbox_weights")[..., 0])
    close(targets["codes"], levels_of(case, "bbox_targets"))
    assert matched.sum() == case.data["out.num_total_pos"]

    losses, gradients = losses_and_gradients(detector, case)
    close(losses["classification"], sum(case.data[f"out.loss_cls.{i}"] for i in LEVELS))
    close(losses["box"], sum(case.data[f"out.loss_bbox.{i}"] for i in LEVELS))
    check_gradients(case, gradients)


def test_fsaf_loss(recipe):
    case = recipe.load_case("fsaf_loss")
    detector = tiny_detector(FSAF, num_classes=5, convention="mmdet1")
    cls, reg = raw_outputs(case)
    outputs = {"classification": cls, "box": [tf.nn.relu(x) for x in reg]}
    batch = padded_batch(case)
    for anchors, i in zip(detector.anchors(outputs), LEVELS):
        np.testing.assert_array_equal(anchors, case.data[f"out.anchors.{i}"])

    targets = detector.label_anchors(outputs, batch)
    np.testing.assert_array_equal(targets["classes"] + 1, levels_of(case, "labels"))
    np.testing.assert_array_equal(targets["matches"] != IGNORED, levels_of(case, "label_weights"))
    matched = targets["matches"].numpy() >= 0
    assert matched.sum() == case.data["out.num_total_pos_before_level_choice"]
    want_codes = levels_of(case, "bbox_targets")
    close(targets["codes"].numpy()[matched], want_codes[matched])

    focal, iou_loss = detector.cell_losses(outputs, targets)
    selected = detector.select_levels(outputs, targets, focal, iou_loss)
    shape = focal.shape[:2]
    per_image = [case.data[f"out.reg_elem.{i}"].reshape(shape[0], -1) for i in LEVELS]
    close(iou_loss.numpy()[matched], np.concatenate(per_image, axis=1)[matched])
    count = [len(case.data[f"in.gt_labels.{i}"]) for i in range(2)]
    real = np.arange(batch["labels"].shape[1]) < np.array(count)[:, None]
    close(selected["mean_losses"].numpy()[real].T, case.data["out.loss_levels"])
    np.testing.assert_array_equal(selected["levels"].numpy()[real], case.data["out.min_levels"])
    kept = [case.data[f"out.keep.{i}"].reshape(shape[0], -1) for i in LEVELS]
    np.testing.assert_array_equal(selected["kept"], np.concatenate(kept, axis=1))

    losses, gradients = losses_and_gradients(detector, case)
    close(losses["classification"], sum(case.data[f"out.loss_cls.{i}"] for i in LEVELS))
    close(losses["box"], sum(case.data[f"out.loss_bbox.{i}"] for i in LEVELS))
    check_gradients(case, gradients)


def test_freeanchor_loss(recipe):
    case = recipe.load_case("freeanchor_loss")
    detector = tiny_detector(FreeAnchor, num_classes=5, convention="mmdet1")
    cls, reg = raw_outputs(case)
    outputs, batch = {"classification": cls, "box": reg}, padded_batch(case)
    anchors = tf.concat(detector.anchors(outputs), axis=0)
    logits, codes = (tf.concat(levels, axis=1) for levels in detector.flatten_outputs(outputs))
    boxes, labels = batch["boxes"], batch["labels"]
    bags = detector.select_bags(anchors, boxes)
    positive = detector.bag_losses(anchors, bags, logits, codes, boxes, labels).numpy()
    for i in range(2):
        count = len(case.data[f"in.gt_labels.{i}"])
        np.testing.assert_array_equal(
            np.sort(bags[i, :count]), case.data[f"out.matched_sorted.{i}"]
        )
        close(positive[i, :count], case.data[f"out.positive_bag_per_gt.{i}"])
    close(detector.coverage(anchors, codes, boxes, labels), case.data["out.box_prob"], 1e-4)

    losses, gradients = losses_and_gradients(detector, case)
    close(losses["positive_bag"], case.data["out.positive_bag_loss"])
    close(losses["negative_bag"], case.data["out.negative_bag_loss"])
    check_gradients(case, gradients)


def check_decoding(detector, case):
    detector.nms_pre = case.config["test_cfg"]["nms_pre"]
    cls, reg = raw_outputs(case)
    if detector.head.box_activation:
        reg = [tf.nn.relu(x) for x in reg]
    outputs = {"classification": cls, "box": reg}
    image_sizes = tf.constant([case.config["img_meta"]["img_shape"][:2]])

    # Candidates, in any order within a level: compared after sorting by the scores of all classes.
    boxes, scores = detector.scored_boxes(outputs, image_sizes)
    boxes, scores = boxes[0].numpy(), scores[0].numpy()
    want_boxes, want_scores = case.data["out.boxes"], case.data["out.scores"][:, 1:]
    assert boxes.shape == want_boxes.shape
    order, want_order = (np.lexsort(np.round(s.T, 5)) for s in (scores, want_scores))
    close(scores[order], want_scores[want_order])
    close(boxes[order], want_boxes[want_order])

    got = {k: v[0].numpy() for k, v in detector.decode(outputs, image_sizes).items()}
    want = case.data["out.det_bboxes"]
    order = np.argsort(-want[:, 4], kind="stable")
    assert got["num_detections"] == len(want)
    close(got["scores"], want[order, 4])
    np.testing.assert_array_equal(got["classes"], case.data["out.det_labels"][order])
    close(got["boxes"], want[order, :4])


def test_decode_retina(recipe):
    detector = tiny_detector(RetinaNet, num_classes=5, convention="mmdet1")
    check_decoding(detector, recipe.load_case("decode_retina"))


def test_decode_freeanchor(recipe):
    detector = tiny_detector(FreeAnchor, num_classes=5, convention="mmdet1")
    check_decoding(detector, recipe.load_case("decode_freeanchor"))


def test_decode_fsaf(recipe):
    detector = tiny_detector(FSAF, num_classes=5, convention="mmdet1")
    check_decoding(detector, recipe.load_case("decode_fsaf"))
