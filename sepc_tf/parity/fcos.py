"""Family of cases: FCOS, from its head to the whole detector."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import tensorflow as tf

from sepc_tf.checkpoints import import_state_dict
from sepc_tf.config import BackboneConfig, DetectorConfig, HeadConfig
from sepc_tf.detectors.fcos import FCOSHead, FCOSOptions
from sepc_tf.necks import ConvTowers
from sepc_tf.ops.nms import top_candidates
from sepc_tf.ops.points import box_distances, distance_boxes
from sepc_tf.parity.comparing import NETWORK_TOLERANCE, OPERATOR_TOLERANCE, Comparison
from sepc_tf.parity.dense import padded_objects, split_levels
from sepc_tf.parity.fusion import neck_config
from sepc_tf.parity.golden import level_inputs, nchw, nhwc
from sepc_tf.parity.modules import check_module
from sepc_tf.parity.networks import backbone_config
from sepc_tf.zoo import build_detector

# Our outputs -> what the cases call them.
OUTPUTS = {"classification": "cls", "box": "reg", "centerness": "centerness"}


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
    if _is_fcos(config.get("head")):
        if "test_cfg" in config:
            return check_decoding, OPERATOR_TOLERANCE
        if "regress_ranges" in config:
            return check_losses, OPERATOR_TOLERANCE
        return check_head, NETWORK_TOLERANCE
    model = config.get("model")
    if isinstance(model, dict) and _is_fcos(model.get("bbox_head")):
        return check_detector, NETWORK_TOLERANCE
    return None


def _is_fcos(head):
    return isinstance(head, dict) and head["type"] == "FCOSHead"


def fcos_options(head, regress_ranges=None):
    """`FCOSOptions` of an mmdetection `bbox_head`.

    Args:
        head: its settings.
        regress_ranges: pairs of the shortest and the longest distance of each level; by default
            those of the head, or the published ones.
    """
    ranges = regress_ranges or head.get("regress_ranges")
    return FCOSOptions(
        strides=head["strides"],
        max_distances=[longest for _, longest in ranges[:-1]] if ranges else None,
        center_radius=head["center_sample_radius"] if head.get("center_sampling") else None,
        focal_alpha=head["loss_cls"]["alpha"],
        focal_gamma=head["loss_cls"]["gamma"],
        classification_weight=head["loss_cls"]["loss_weight"],
        box_loss=head["loss_bbox"]["type"].removesuffix("Loss").lower(),
        box_weight=head["loss_bbox"]["loss_weight"],
        centerness_weight=head["loss_centerness"]["loss_weight"],
    )


class Head(keras.layers.Layer):
    """Towers and final convolutions, which are one `bbox_head` there; outputs in their order."""

    def __init__(self, head, **kwargs):
        super().__init__(**kwargs)
        self.towers = ConvTowers(
            head["feat_channels"],
            head["stacked_convs"],
            norm="group" if head.get("norm_cfg", True) else None,
            dtype=self.dtype_policy,
            name="towers",
        )
        self.head = FCOSHead(head["num_classes"] - 1, dtype=self.dtype_policy, name="head")

    @property
    def parts(self):
        return {"towers": self.towers, "head": self.head}

    def build(self, shapes):
        self.towers.build(shapes)
        self.head.build(self.towers.compute_output_shape(shapes))
        self.built = True

    def call(self, pyramid, training=None):
        outputs = self.head(self.towers(pyramid, training=training))
        return [outputs[name] for name in OUTPUTS]


def check_head(case, comparison: Comparison) -> None:
    """Towers and head: outputs, and gradients of inputs and parameters."""
    cotangents = {name: level_inputs(case, f"cot.{name}") for name in OUTPUTS.values()}
    head = case.config["head"]
    check_module(case, comparison, lambda dtype: Head(head, dtype=dtype), cotangents)


def head_detector(case):
    """A detector of the case's head and classes, in the authors' convention; tiny elsewhere."""
    config = DetectorConfig(
        type="fcos",
        convention="mmdet1",
        backbone=BackboneConfig(depth=18, width=8),
        head=HeadConfig(variant="baseline", filters=8, num_convs=0),
        options=fcos_options(case.config["head"], case.config.get("regress_ranges")),
    )
    return build_detector(config, num_classes=case.config["num_classes_with_background"] - 1)


def outputs_of(detector, cls, reg, ctr):
    """The detector's outputs as the case makes them of its inputs: `4 stride exp(reg)` pixels."""
    boxes = [4.0 * stride * tf.exp(x) for stride, x in zip(detector.matcher.strides, reg)]
    return {"classification": cls, "box": boxes, "centerness": ctr}


def check_losses(case, comparison: Comparison) -> None:
    """Points, targets, losses, gradients."""
    detector = head_detector(case)
    images = sum(key.startswith("in.gt_bboxes.") for key in case.data)
    sizes = tf.constant([case.config["image_size"]] * images)
    batch = {**padded_objects(case, images), "image_sizes": sizes}
    maps = [level_inputs(case, name) for name in ("cls", "reg", "ctr")]
    compare_targets(case, comparison, detector, batch, outputs_of(detector, *maps))

    @tf.function(autograph=False)
    def run(maps):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            losses = detector.compute_losses(outputs_of(detector, *maps), batch)
            total = tf.add_n(list(losses.values()))
        return losses, total, tape.gradient(total, maps)

    losses, total, gradients = run(maps)
    comparison.output("out.loss", total)
    names = {"classification": "cls", "box": "bbox", "centerness": "centerness"}
    for name, theirs in names.items():
        comparison.output(f"out.loss_{theirs}", losses[name])
    for name, levels in zip(("cls", "reg", "ctr"), gradients):
        keys = [f"out.grad_{name}.{i}" for i in range(len(levels))]
        # Coarse levels may hold next to nothing: all levels in units of the largest.
        largest = max(np.abs(case.data[key]).max() for key in keys)
        for key, level in zip(keys, levels):
            comparison.close(key, nchw(level), scale=largest)


def compare_targets(case, comparison, detector, batch, outputs):
    """What the points should predict, and what they do predict, level by level."""
    targets = {name: x.numpy() for name, x in detector.label_points(outputs, batch).items()}
    points = tf.concat(detector.points(outputs), axis=0)
    distances = tf.concat(detector.flatten_outputs(outputs)[1], axis=1)
    arrays = {
        "labels": targets["classes"] + 1,
        "bbox_targets": box_distances(points, targets["boxes"]).numpy(),
        "centerness_targets": targets["centerness"],
        "pos_decoded_pred": distance_boxes(points, distances).numpy(),
        "pos_decoded_target": targets["boxes"],
    }
    levels = {name: split_levels(array, outputs, 1) for name, array in arrays.items()}
    matched = [labels > 0 for labels in levels["labels"]]
    for i, level_points in enumerate(detector.points(outputs)):
        comparison.close(f"out.points.{i}", level_points)
        comparison.equal(f"out.labels.{i}", levels["labels"][i])
        key = f"out.bbox_targets.{i}"  # elsewhere: distances to an object that is not theirs
        got, want = levels["bbox_targets"][i], case.data[key]
        comparison.close(key, got[matched[i]], want[matched[i]])
        key = f"out.bbox_pred.{i}"
        if key in case.output_specs:
            comparison.output(key, nchw(outputs["box"][i]))
    # The rest is of matched points only, in the order (level, image, row, column).
    flags = np.concatenate([level.ravel() for level in matched])
    comparison.equal("out.pos_inds", np.flatnonzero(flags))
    for name in ("centerness_targets", "pos_decoded_pred", "pos_decoded_target"):
        rows = [level[here] for level, here in zip(levels[name], matched)]
        if f"out.{name}" in case.output_specs:
            comparison.close(f"out.{name}", np.concatenate(rows))


def check_decoding(case, comparison: Comparison) -> None:
    """Candidates before NMS, compared point by point, and detections after it."""
    detector = head_detector(case)
    settings, meta = case.config["test_cfg"], case.config["img_meta"]
    detector.nms_pre = settings["nms_pre"]
    detector.score_threshold = settings["score_thr"]
    detector.nms_iou = settings["nms"]["iou_thr"]
    detector.max_detections = settings["max_per_img"]
    maps = [level_inputs(case, name) for name in ("cls", "reg", "ctr")]
    outputs = outputs_of(detector, *maps)
    image_sizes = tf.constant([meta["img_shape"][:2]])

    # Within a level ours come in order of score, theirs so or in order of points.
    logits, centre_logits = (
        detector.flatten_outputs(outputs)[0],
        detector.flatten_centerness(outputs),
    )
    ours, theirs, selections, start = [], [], itertools.count(), 0
    for level_logits, level_centre in zip(logits, centre_logits):
        scores = tf.sigmoid(level_logits) * tf.sigmoid(level_centre)[..., None]
        rows = top_candidates(scores, detector.nms_pre)[0].numpy()
        their_rows = np.sort(rows)
        if level_logits.shape[1] > detector.nms_pre:
            key = f"out.topk_inds.{next(selections)}"
            their_rows = case.data[key]
            comparison.equal(key, np.sort(rows), np.sort(their_rows))
        ours.append(start + np.argsort(rows))
        theirs.append(start + np.argsort(their_rows))
        start += len(rows)
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    boxes, scores, centerness = (x[0].numpy() for x in detector.candidates(outputs, image_sizes))
    candidates = {
        "boxes": boxes,
        "boxes_rescaled": boxes / meta["scale_factor"],
        "scores": np.pad(scores, ((0, 0), (1, 0))),  # with a background
        "centerness": centerness,
    }
    for name, array in candidates.items():
        key = f"out.{name}"
        comparison.close(key, array[ours], case.data[key][theirs])

    got = {key: x[0].numpy() for key, x in detector.decode(outputs, image_sizes).items()}
    count = got["num_detections"]
    want, labels = case.data["out.det_bboxes"], case.data["out.det_labels"]
    if count != len(want):
        comparison.problems.append(f"{count} detections, expected {len(want)}")
        return
    # Theirs are not always in order of score, and scores may nearly tie: by class and box.
    far = np.abs(got["boxes"][:count, None] - want[None, :, :4]).max(axis=2)
    partner = np.where(got["classes"][:count, None] == labels, far, np.inf).argmin(axis=1)
    comparison.equal("out.det_labels", got["classes"][:count], labels[partner])
    comparison.equal("out.det_labels", np.sort(partner), np.arange(count))
    comparison.close("out.det_bboxes", got["boxes"][:count], want[partner, :4])
    comparison.close("out.det_bboxes", got["scores"][:count], want[partner, 4])


def check_detector(case, comparison: Comparison) -> None:
    """Pyramid and raw outputs of a whole detector in evaluation."""
    model = case.config["model"]
    head = model["bbox_head"]
    config = DetectorConfig(
        type="fcos",
        convention="mmdet1",
        backbone=backbone_config(model["backbone"]),
        necks=[neck_config(model["neck"])],
        head=HeadConfig(
            variant="baseline",
            filters=head["feat_channels"],
            num_convs=head["stacked_convs"],
            normalization="group" if head.get("norm_cfg", True) else None,
        ),
        options=fcos_options(head),
    )
    detector = build_detector(config, num_classes=head["num_classes"] - 1)
    import_state_dict(detector, case.params())

    @tf.function(autograph=False)
    def run(image):
        return detector.pyramid(image, training=False), detector(image, training=False)

    pyramid, outputs = run(nhwc(case.inputs()["img"]))
    groups = {"fpn": pyramid, **{theirs: outputs[name] for name, theirs in OUTPUTS.items()}}
    for name, maps in groups.items():
        for i, level in enumerate(maps):
            comparison.output(f"out.{name}.{i}", nchw(level))
