"""Family of cases: targets, losses and decoding of dense detectors, from given head outputs."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from sepc_tf.config import BackboneConfig, DetectorConfig, HeadConfig
from sepc_tf.detectors.dense import level_sizes
from sepc_tf.ops.matching import IGNORED
from sepc_tf.ops.nms import top_candidates
from sepc_tf.parity.comparing import (
    NETWORK_TOLERANCE,
    OPERATOR_TOLERANCE,
    Comparison,
    relative_error,
)
from sepc_tf.parity.golden import level_inputs, nchw
from sepc_tf.parity.networks import detector_type
from sepc_tf.zoo import build_detector


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
    kind = detector_type(config.get("head"))
    if kind is None:
        return None
    if "test_cfg" in config:
        return check_decoding, OPERATOR_TOLERANCE
    # FreeAnchor divides by an object's best IoU minus 0.6, which may be as small as it likes.
    return {
        "retinanet": (check_retinanet, OPERATOR_TOLERANCE),
        "fsaf": (check_fsaf, OPERATOR_TOLERANCE),
        "free_anchor": (check_free_anchor, NETWORK_TOLERANCE),
    }[kind]


def head_detector(case):
    """A detector of the case's head and classes, in the authors' convention; tiny elsewhere."""
    config = DetectorConfig(
        type=detector_type(case.config["head"]),
        convention="mmdet1",
        backbone=BackboneConfig(depth=18, width=8),
        head=HeadConfig(variant="baseline", filters=8, num_convs=1),
    )
    return build_detector(config, num_classes=case.config["num_classes_with_background"] - 1)


def raw_outputs(case):
    """Class and box maps as the last convolutions gave them: two lists of NHWC tensors."""
    return level_inputs(case, "cls"), level_inputs(case, "reg")


def activated(detector, cls, reg):
    """Raw maps as the detector's outputs."""
    box = [tf.nn.relu(x) for x in reg] if detector.head.box_activation else reg
    return {"classification": cls, "box": box}


def padded_batch(case):
    """The case's objects as a batch, see `padded_objects`, with the sizes of its images."""
    sizes = [m["img_shape"][:2] for m in case.config["img_metas"]]
    return {**padded_objects(case, len(sizes)), "image_sizes": tf.constant(sizes)}


def padded_objects(case, images):
    """Boxes and labels of so many images: labels from 0 (all 0 without any), padded with -1."""
    boxes = [case.data[f"in.gt_bboxes.{i}"] for i in range(images)]
    labels = [
        case.data.get(f"in.gt_labels.{i}", np.ones(len(boxes[i]), int)) - 1 for i in range(images)
    ]
    most = max(map(len, boxes)) + 2

    def padded(array):
        widths = [(0, most - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, widths, constant_values=-1)

    return {
        "boxes": tf.constant(np.stack([padded(b) for b in boxes]), tf.float32),
        "labels": tf.constant(np.stack([padded(x) for x in labels]), tf.int32),
    }


def split_levels(array, outputs, anchors_per_cell, axis=1):
    """Rows of all levels, in one array, as a list of levels."""
    rows = [h * w * anchors_per_cell for h, w in level_sizes(outputs)]
    return np.split(np.asarray(array), np.cumsum(rows)[:-1], axis=axis)


def compare_losses(case, comparison, detector, batch, names):
    """The losses, their sum, and their gradients with respect to the raw maps.

    Args:
        names: dict of one of our losses -> their name; where they store one value per level, the
            sum of the levels is compared.
    """
    cls, reg = raw_outputs(case)

    @tf.function(autograph=False)
    def run(cls, reg):
        with tf.GradientTape() as tape:
            tape.watch([cls, reg])
            losses = detector.compute_losses(activated(detector, cls, reg), batch)
            total = tf.add_n(list(losses.values()))
        return losses, total, tape.gradient(total, [cls, reg])

    losses, total, gradients = run(cls, reg)
    comparison.output("out.loss_total", total)
    for name, theirs in names.items():
        keys = [k for k in case.output_specs if k == f"out.{theirs}" or _is_level(k, theirs)]
        error = relative_error(losses[name], np.sum([case.data[key] for key in keys]))
        for key in keys:
            comparison.record(key, error)
    for kind, maps in zip(("cls", "reg"), gradients):
        # Coarse levels may hold next to nothing: all levels in units of the largest.
        largest = max(np.abs(case.data[f"out.grad_{kind}.{i}"]).max() for i in range(len(maps)))
        for i, level in enumerate(maps):
            comparison.close(f"out.grad_{kind}.{i}", nchw(level), scale=largest)


def _is_level(key, name):
    head, _, level = key.rpartition(".")
    return head == f"out.{name}" and level.isdigit()


def compare_targets(case, comparison, detector, outputs, targets):
    """Anchors, labels, weights and encoded boxes of RetinaNet and FSAF, level by level."""
    matches = targets["matches"].numpy()
    matched = matches >= 0
    arrays = {
        "labels": targets["classes"].numpy() + 1,
        "label_weights": matches != IGNORED,
        "bbox_targets": np.where(matched[..., None], targets["codes"], 0.0),
    }
    levels = {
        name: split_levels(array, outputs, detector.anchor_generator.anchors_per_cell)
        for name, array in arrays.items()
    }
    for i, anchors in enumerate(detector.anchors(outputs)):
        comparison.close(f"out.anchors.{i}", anchors)
        comparison.equal(f"out.labels.{i}", levels["labels"][i])
        comparison.equal(f"out.label_weights.{i}", levels["label_weights"][i])
        # Where nothing is matched the authors' code leaves zeros or junk; neither is used.
        used = levels["labels"][i] > 0
        comparison.close(
            f"out.bbox_targets.{i}",
            levels["bbox_targets"][i][used],
            case.data[f"out.bbox_targets.{i}"][used],
        )
    return matched, matches


def check_retinanet(case, comparison: Comparison) -> None:
    """RetinaNet: anchors, targets, losses, gradients."""
    detector, batch = head_detector(case), padded_batch(case)
    outputs = activated(detector, *raw_outputs(case))
    targets = detector.label_anchors(outputs, batch)
    matched, matches = compare_targets(case, comparison, detector, outputs, targets)
    valid = detector.anchor_generator.valid(level_sizes(outputs), batch["image_sizes"])
    anchors = detector.anchor_generator.anchors_per_cell
    for i, flags in enumerate(split_levels(valid, outputs, anchors)):
        comparison.equal(f"out.valid.{i}", flags)
    for i, flags in enumerate(split_levels(matched, outputs, anchors)):
        comparison.equal(f"out.bbox_weights.{i}", np.repeat(flags[..., None], 4, axis=-1))
    at_least_one = [np.maximum(flags.sum(axis=1), 1).sum() for flags in (matched, matches == -1)]
    comparison.equal("out.num_total_pos", at_least_one[0])
    comparison.equal("out.num_total_neg", at_least_one[1])
    names = {"classification": "loss_cls", "box": "loss_bbox"}
    compare_losses(case, comparison, detector, batch, names)


def check_fsaf(case, comparison: Comparison) -> None:
    """FSAF: targets, losses of every cell, the choice of levels, losses, gradients."""
    detector, batch = head_detector(case), padded_batch(case)
    outputs = activated(detector, *raw_outputs(case))
    targets = detector.label_anchors(outputs, batch)
    matched, matches = compare_targets(case, comparison, detector, outputs, targets)
    comparison.equal("out.num_total_pos_before_level_choice", matched.sum())

    # Objects are numbered image by image.
    counts = np.sum(batch["labels"].numpy() >= 0, axis=1)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])[:, None]
    focal, iou_loss = (x.numpy() for x in detector.cell_losses(outputs, targets))
    num_boxes = batch["boxes"].shape[1]
    selected = detector.select_levels(
        outputs, targets, tf.constant(focal), tf.constant(iou_loss), num_boxes
    )
    arrays = {
        "assigned": np.where(matched, matches, -1),
        "assigned_global": np.where(matched, matches + first, -1),
        "keep": selected["kept"].numpy(),
        "cls_elem": np.where((matches != IGNORED)[..., None], focal, 0.0),
        "reg_elem": np.where(matched, iou_loss, 0.0),
    }
    for name, array in arrays.items():
        compare = comparison.close if name.endswith("elem") else comparison.equal
        for i, level in enumerate(split_levels(array, outputs, 1)):
            key = f"out.{name}.{i}"
            compare(key, level.reshape(case.data[key].shape))
    real = batch["labels"].numpy() >= 0
    comparison.close("out.loss_levels", selected["mean_losses"].numpy()[real].T)
    comparison.equal("out.min_levels", selected["levels"].numpy()[real])

    kept = arrays["keep"]
    comparison.close("out.num_pos_per_image", kept.sum() / len(kept))
    logits = np.concatenate([x.numpy() for x in detector.flatten_outputs(outputs)[0]], axis=1)
    right = logits[kept].argmax(axis=-1) == targets["classes"].numpy()[kept]
    comparison.close("out.accuracy", right.sum() / (kept.sum() + 1e-3))
    names = {"classification": "loss_cls", "box": "loss_bbox"}
    compare_losses(case, comparison, detector, batch, names)


def check_free_anchor(case, comparison: Comparison) -> None:
    """FreeAnchor: bags, positive losses, coverage, losses, gradients."""
    detector, batch = head_detector(case), padded_batch(case)
    outputs = activated(detector, *raw_outputs(case))
    anchors = tf.concat(detector.anchors(outputs), axis=0)
    logits, codes = (tf.concat(levels, axis=1) for levels in detector.flatten_outputs(outputs))
    boxes, labels = batch["boxes"], batch["labels"]
    bags = detector.select_bags(anchors, boxes)
    positive = detector.bag_losses(anchors, bags, logits, codes, boxes, labels).numpy()
    for i in range(len(positive)):
        count = len(case.data[f"in.gt_labels.{i}"])
        comparison.equal(f"out.matched_sorted.{i}", np.sort(bags[i, :count], axis=-1))
        comparison.close(f"out.positive_bag_per_gt.{i}", positive[i, :count])
    comparison.close("out.box_prob", detector.coverage(anchors, codes, boxes, labels))
    names = {"positive_bag": "positive_bag_loss", "negative_bag": "negative_bag_loss"}
    compare_losses(case, comparison, detector, batch, names)


def check_decoding(case, comparison: Comparison) -> None:
    """Candidates before NMS and detections after it."""
    detector = head_detector(case)
    compare_decoding(case, comparison, detector, activated(detector, *raw_outputs(case)))


def compare_decoding(case, comparison, detector, outputs):
    """Candidates before NMS, compared one by one, and detections after it."""
    settings, meta = case.config["test_cfg"], case.config["img_meta"]
    detector.nms_pre = settings["nms_pre"]
    detector.score_threshold = settings["score_thr"]
    detector.nms_iou = settings["nms"]["iou_thr"]
    detector.max_detections = settings["max_per_img"]
    image_sizes = tf.constant([meta["img_shape"][:2]])

    # Within a level ours come in order of score, theirs so or in order of anchors.
    boxes, scores = (x[0].numpy() for x in detector.scored_boxes(outputs, image_sizes))
    ours, theirs, selections, start = [], [], 0, 0
    for logits in detector.flatten_outputs(outputs)[0]:
        rows = top_candidates(tf.sigmoid(logits), detector.nms_pre)[0].numpy()
        their_rows = np.sort(rows)
        if logits.shape[1] > detector.nms_pre:
            their_rows = case.data[f"out.topk_inds.{selections}"]
            comparison.equal(f"out.topk_inds.{selections}", np.sort(rows), np.sort(their_rows))
            selections += 1
        ours.append(start + np.argsort(rows))
        theirs.append(start + np.argsort(their_rows))
        start += len(rows)
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    want = {key: case.data[f"out.{key}"][theirs] for key in ("boxes", "boxes_rescaled", "scores")}
    with_background = np.pad(scores, ((0, 0), (1, 0)))
    comparison.close("out.boxes", boxes[ours], want["boxes"])
    comparison.close(
        "out.boxes_rescaled", boxes[ours] / meta["scale_factor"], want["boxes_rescaled"]
    )
    comparison.close("out.scores", with_background[ours], want["scores"])

    got = {key: x[0].numpy() for key, x in detector.decode(outputs, image_sizes).items()}
    count = got["num_detections"]
    order = np.argsort(-case.data["out.det_bboxes"][:, 4], kind="stable")
    detections = np.concatenate([got["boxes"], got["scores"][:, None]], axis=1)[:count]
    comparison.close("out.det_bboxes", detections[:, :4], case.data["out.det_bboxes"][order, :4])
    comparison.close("out.det_bboxes", detections[:, 4], case.data["out.det_bboxes"][order, 4])
    comparison.equal("out.det_labels", got["classes"][:count], case.data["out.det_labels"][order])
