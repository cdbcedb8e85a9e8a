"""Family of cases: parts of two-stage detectors; RoIAlign, RPN, box head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from sepc_tf import compat
from sepc_tf.backbones import ResNet
from sepc_tf.checkpoints import import_state_dict, mmdet_names, named_variables
from sepc_tf.detectors.anchor_based import AnchorOptions
from sepc_tf.detectors.two_stage.roi_heads import BoxHead, RoIStage
from sepc_tf.detectors.two_stage.rpn import RPN, ProposalOptions, RPNHead, RPNOptions, RPNTower
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.necks import FPN
from sepc_tf.ops.boxes import pairwise_iou
from sepc_tf.ops.coders import BoxCoder
from sepc_tf.ops.matching import BACKGROUND, IGNORED, MaxIoUMatcher
from sepc_tf.ops.nms import multiclass_nms, top_candidates
from sepc_tf.ops.roi_align import roi_align, roi_levels
from sepc_tf.ops.sampling import RandomSampler
from sepc_tf.parity.comparing import (
    NETWORK_TOLERANCE,
    OPERATOR_TOLERANCE,
    Comparison,
    relative_error,
)
from sepc_tf.parity.dense import padded_batch, split_levels
from sepc_tf.parity.golden import level_inputs, nchw, nhwc
from sepc_tf.parity.modules import compare_float32_gradients


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
    head = config.get("head")
    if isinstance(head, dict) and head.get("type") == "RPNHead":
        if "train_cfg" in config:
            return check_rpn_loss, OPERATOR_TOLERANCE
        if "proposal_cfg" in config:
            return check_proposals, OPERATOR_TOLERANCE
        return check_rpn_head, NETWORK_TOLERANCE
    if isinstance(head, dict) and head.get("type") == "SharedFCBBoxHead":
        if "train_cfg" in config:
            return check_box_loss, OPERATOR_TOLERANCE
        if "test_cfg" in config:
            return check_box_decoding, OPERATOR_TOLERANCE
        if "img_metas" in config:
            return check_refinement, OPERATOR_TOLERANCE
        return check_box_head, NETWORK_TOLERANCE
    if "sample_num" in config:
        return check_roi_align, OPERATOR_TOLERANCE
    if "extractor" in config:
        return check_roi_extractor, OPERATOR_TOLERANCE
    if "finest_scale" in config:
        return check_roi_levels, OPERATOR_TOLERANCE
    return None


def check_roi_align(case, comparison: Comparison) -> None:
    """RoIAlign on one level: forward and gradient."""
    config, inputs = case.config, case.inputs()
    strides = [1 / config["spatial_scale"]]
    pyramid = [nhwc(inputs[f"{case.name}.x"])]
    cotangent = inputs[f"{case.name}.cot"]
    (gradient,) = compare_pooled(
        case, comparison, pyramid, cotangent, strides, config["out_size"], config["sample_num"]
    )
    comparison.output("out.grad_x", nchw(gradient))


def check_roi_extractor(case, comparison: Comparison) -> None:
    """The choice of levels and RoIAlign: forward and the gradient of every level."""
    extractor = case.config["extractor"]
    strides, layer = extractor["featmap_strides"], extractor["roi_layer"]
    levels = roi_levels(case.data["in.rois"][:, 1:], len(strides), convention="mmdet1")
    comparison.equal("out.levels", levels)
    pyramid = level_inputs(case, "x")
    cotangent = case.inputs()[f"{case.name}.cot.y"]
    gradients = compare_pooled(
        case, comparison, pyramid, cotangent, strides, layer["out_size"], layer["sample_num"]
    )
    for level, gradient in enumerate(gradients):
        comparison.output(f"out.grad_x.{level}", nchw(gradient))


def check_roi_levels(case, comparison: Comparison) -> None:
    """The level of each box."""
    config, boxes = case.config, case.data["in.rois"][:, 1:]
    levels = roi_levels(boxes, config["num_levels"], config["finest_scale"], "mmdet1")
    comparison.equal("out.levels", levels)


def compare_pooled(case, comparison, pyramid, cotangent, strides, size, samples):
    """Compares `out.y` and `out.loss`; returns the gradients of the levels."""
    rois = case.data["in.rois"]
    boxes, present, rows = by_image(rois, len(pyramid[0]))
    # `out.y` has the boxes in the order of `in.rois`, ours are sorted by image.
    cotangents = np.zeros((*present.shape, *cotangent.shape[1:]), np.float32)
    cotangents[rows] = cotangent

    @tf.function(autograph=False)
    def run(pyramid):
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            y = roi_align(
                pyramid,
                boxes,
                present,
                strides=strides,
                size=size,
                samples=samples,
                convention="mmdet1",
            )
            loss = tf.reduce_sum(y * cotangents.transpose(0, 1, 3, 4, 2))
        return y, loss, tape.gradient(loss, pyramid)

    y, loss, gradients = run(pyramid)
    y = y.numpy()[rows].transpose(0, 3, 1, 2)
    comparison.output("out.y", y)
    # The loss may cancel to any small number: in units of such a sum with random signs.
    comparison.output("out.loss", loss, np.sqrt(np.sum(np.square(y * cotangent))))
    return gradients


def by_image(rois: np.ndarray, batch: int):
    """Boxes `[N, 5]` with the image in front as a padded batch.

    Args:
        rois: (image, x1, y1, x2, y2).
        batch: number of images.

    Returns:
        boxes `[B, R, 4]`, present `[B, R]`, and the pair of index arrays `[N]` that finds the
        boxes of `rois` in them.
    """
    image = rois[:, 0].astype(int)
    place = np.array([np.sum(image[:i] == image[i]) for i in range(len(image))])
    boxes = np.zeros((batch, place.max() + 1, 4), np.float32)
    present = np.zeros(boxes.shape[:2], bool)
    boxes[image, place], present[image, place] = rois[:, 1:], True
    return boxes, present, (image, place)


def rpn_of(case) -> RPN:
    """An RPN of the case's anchors and losses, in the authors' convention; tiny elsewhere."""
    head = case.config["head"]
    options = rpn_options(head, case.config.get("train_cfg", {}).get("assigner"))
    neck = FPN(8, len(head["anchor_strides"]), min_level=2, extra_levels="pool", name="fpn")
    backbone = ResNet(18, width=8, name="backbone")
    return RPN.from_parts(backbone, neck, 8, convention="mmdet1", options=options)


def rpn_options(head: dict, assigner: dict | None) -> RPNOptions:
    """`RPNOptions` of an mmdetection `rpn_head` and, in training, its `assigner`."""
    anchors = AnchorOptions(
        strides=head["anchor_strides"], scales=head["anchor_scales"], ratios=head["anchor_ratios"]
    )
    options = RPNOptions(
        anchors, smooth_l1_beta=head["loss_bbox"]["beta"], box_stds=head["target_stds"]
    )
    if assigner:
        options.positive_iou = assigner["pos_iou_thr"]
        options.negative_iou = assigner["neg_iou_thr"]
        options.claim_iou = assigner["min_pos_iou"]
    return options


def rpn_outputs(case) -> dict:
    """The raw outputs that the case gives."""
    return {"classification": level_inputs(case, "cls"), "box": level_inputs(case, "reg")}


def check_rpn_head(case, comparison: Comparison) -> None:
    """The convolutions of the RPN: outputs and all gradients."""
    params = case.params()
    anchors, filters = len(params["rpn_cls.bias"]), len(params["rpn_conv.bias"])

    def results(dtype):
        tower, head = RPNTower(filters, dtype=dtype), RPNHead(anchors, dtype=dtype)
        pyramid = [tf.cast(x, dtype) for x in level_inputs(case, "x")]
        shapes = [x.shape for x in pyramid]
        tower.build(shapes)
        head.build(tower.compute_output_shape(shapes))
        cotangents = {"classification": level_inputs(case, "cot.cls")}
        cotangents["box"] = level_inputs(case, "cot.reg")
        outputs, loss, by_inputs, gradients = layer_results(
            case, [tower, head], pyramid, cotangents
        )
        gradients |= {f"out.grad_x.{i}": nchw(g) for i, g in enumerate(by_inputs)}
        return outputs, loss, gradients

    outputs, loss, gradients = results("float32")
    for name, kind in (("classification", "cls"), ("box", "reg")):
        for i, output in enumerate(outputs[name]):
            comparison.output(f"out.{kind}.{i}", nchw(output))
    comparison.output("out.loss", *loss)
    compare_float32_gradients(comparison, gradients, lambda: results("float64")[2])


def layer_results(
    case,
    layers: Sequence[keras.layers.Layer],
    inputs,
    cotangents,
    further_loss: Callable | None = None,
):
    """Runs built layers one after the other and differentiates `sum(output cotangent)`.

    Args:
        case: as in `check_case`; it has the parameters.
        layers: called one after the other.
        inputs: of the first one.
        cotangents: of the structure of the outputs of the last one.
        further_loss: function of these outputs; what it returns is added to the sum.

    Returns:
        outputs; the loss and the unit it is compared in; the gradients by `inputs`; and those by
        the parameters under the golden names.
    """
    variables = {}
    for layer in layers:
        names = mmdet_names(layer)
        keys = {key for key, _ in names.values()}
        import_state_dict(layer, {k: v for k, v in case.params().items() if k in keys})
        variables |= {names[path]: variable for path, variable in named_variables(layer).items()}

    @tf.function(autograph=False)
    def run(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = inputs
            for layer in layers:
                outputs = layer(outputs)
            terms = tf.nest.map_structure(lambda y, c: y * tf.cast(c, y.dtype), outputs, cotangents)
            loss = _sum(tf.reduce_sum(term) for term in tf.nest.flatten(terms))
            if further_loss:
                loss += tf.cast(further_loss(outputs), loss.dtype)
        # The loss may cancel to any small number: its unit is such a sum with random signs.
        unit = tf.sqrt(_sum(tf.reduce_sum(term**2) for term in tf.nest.flatten(terms)))
        sources = inputs, [compat.variable_value(v) for v in variables.values()]
        return outputs, (loss, unit), tape.gradient(loss, sources)

    outputs, loss, (by_inputs, by_variables) = run(inputs)
    gradients = {}
    for (key, layout), gradient in zip(variables, by_variables):
        axes = {"hwio": (3, 2, 0, 1), "io": (1, 0), "same": (0,)}[layout]
        gradients[f"out.grad.{key}"] = np.transpose(gradient, axes)
    return outputs, loss, by_inputs, gradients


def _sum(terms):
    # Of layers in float64 features are float64, logits float32.
    return tf.add_n([tf.cast(term, tf.float64) for term in terms])


def check_rpn_loss(case, comparison: Comparison) -> None:
    """Anchors, assignment, and with the given samples targets, losses and gradients."""
    rpn, outputs, batch = rpn_of(case), rpn_outputs(case), padded_batch(case)
    targets = rpn.label_anchors(outputs, batch)
    matches = targets["matches"].numpy()
    inside = rpn.learnable_anchors(outputs, batch["image_sizes"]).numpy()
    per_cell = rpn.anchor_generator.anchors_per_cell
    anchors = tf.concat(rpn.anchors(outputs), axis=0)
    rows, present = given_samples(case, "")
    sampled = np.zeros(matches.shape, bool)
    for i in range(len(matches)):
        sampled[i, rows[i][present[i]]] = True
        comparison.equal(f"out.inside.{i}", inside[i])
        comparison.equal(f"out.gt_inds.{i}", np.where(inside[i], their_codes(matches[i]), -2))
        boxes = case.data[f"in.gt_bboxes.{i}"]
        overlaps = np.zeros(len(anchors), np.float32)
        if len(boxes):
            overlaps = pairwise_iou(anchors, boxes, "mmdet1").numpy().max(axis=1)
        comparison.output(f"out.max_overlaps.{i}", np.where(inside[i], overlaps, -1.0))
    positive = sampled & (matches >= 0)
    arrays = {
        "labels": positive,
        "label_weights": sampled,
        "bbox_targets": np.where(positive[..., None], targets["codes"], 0.0),
        "bbox_weights": np.repeat(positive[..., None], 4, axis=-1),
    }
    for name, array in arrays.items():
        for i, level in enumerate(split_levels(array, outputs, per_cell)):
            stored = case.output_specs[f"out.{name}.{i}"]["shape"]
            # A case of one image stores these without the axis of images.
            one = len(level) == 1 and len(stored) < level.ndim
            comparison.output(f"out.{name}.{i}", level[0] if one else level)
    for i, level in enumerate(rpn.anchors(outputs)):
        comparison.output(f"out.anchors.{i}", level)
    compare_rpn_losses(case, comparison, rpn, outputs, targets, rows, present)


def their_codes(matches: np.ndarray) -> np.ndarray:
    """Matches as the authors write them: -1 ignored, 0 background, else box + 1."""
    return np.where(matches >= 0, matches + 1, np.where(matches == BACKGROUND, 0, -1))


def compare_rpn_losses(case, comparison, rpn, outputs, targets, rows, present):
    """The losses of every level, their sum, and the gradients by the raw outputs."""

    @tf.function(autograph=False)
    def run(outputs):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            losses = rpn.losses_of_sample(outputs, targets, rows, present)
            total = losses["rpn_classification"] + losses["rpn_box"]
        return losses, total, tape.gradient(total, outputs)

    losses, total, gradients = run(outputs)
    comparison.output("out.loss", total)
    compare_sums(case, comparison, losses["rpn_classification"], "out.loss_cls")
    compare_sums(case, comparison, losses["rpn_box"], "out.loss_bbox")
    for name, kind in (("classification", "cls"), ("box", "reg")):
        # Coarse levels may hold next to nothing: all levels in units of the largest.
        keys = [f"out.grad_{kind}.{i}" for i in range(len(gradients[name]))]
        largest = max(np.abs(case.data[key]).max() for key in keys)
        for key, level in zip(keys, gradients[name]):
            comparison.output(key, nchw(level), largest)


def compare_sums(case, comparison, ours, prefix):
    """A loss of ours with the sum of theirs, of which they store one for each level."""
    keys = [key for key in case.output_specs if key.rpartition(".")[0] == prefix]
    error = relative_error(ours, np.sum([case.data[key] for key in keys]))
    for key in keys:
        comparison.record(key, error)


def given_samples(case, prefix: str):
    """The sampled rows of each image, padded: `[B, S]` int32 and bool, positives first."""
    images = len([key for key in case.data if key.startswith(f"in.{prefix}pos_inds.")])
    rows = [
        np.concatenate([case.data[f"in.{prefix}{kind}_inds.{i}"] for kind in ("pos", "neg")])
        for i in range(images)
    ]
    most = max(map(len, rows))
    present = np.stack([np.arange(most) < len(r) for r in rows])
    rows = np.stack([np.pad(r, (0, most - len(r))) for r in rows])
    return rows.astype(np.int32), present


def check_proposals(case, comparison: Comparison) -> None:
    """Proposals of every image, and which anchors are candidates for them."""
    rpn, outputs = rpn_of(case), rpn_outputs(case)
    options = proposal_options(case.config["proposal_cfg"])
    image_sizes = tf.constant([m["img_shape"][:2] for m in case.config["img_metas"]])
    for level, logits in enumerate(rpn.flatten_outputs(outputs)[0]):
        if logits.shape[1] > options.nms_pre:
            rows = top_candidates(logits, options.nms_pre)
            for i, want in enumerate(rows.numpy()):
                key = f"out.topk_inds.{i}.{level}"
                comparison.equal(key, np.sort(want), np.sort(case.data[key]))
    boxes, scores, present = rpn.proposals(outputs, image_sizes, options)
    for i in range(len(image_sizes)):
        found = np.concatenate([boxes[i], scores[i][:, None]], axis=1)[present[i]]
        key = f"out.proposals.{i}"
        comparison.output(key, in_their_order(found, case.data[key]))


def proposal_options(settings: dict) -> ProposalOptions:
    """`ProposalOptions` of mmdetection's `rpn_proposal`, or `rpn` of `test_cfg`."""
    return ProposalOptions(
        nms_pre=settings["nms_pre"],
        nms_iou=settings["nms_thr"],
        nms_post=settings["nms_post"],
        max_proposals=settings["max_num"],
        min_size=settings["min_bbox_size"],
        across_levels=settings["nms_across_levels"],
    )


def in_their_order(found: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Rows (box, score) in the order of the stored ones, as far as scores are equal.

    Scores that differ by float32's rounding only are sorted either way.
    """
    if found.shape != want.shape:
        return found
    nearest = np.abs(want[:, None] - found).max(axis=-1).argmin(axis=1)
    permuted = len({*nearest}) == len(nearest)
    tied = np.abs(found[nearest, 4] - found[:, 4]).max(initial=0.0) < 1e-6
    return found[nearest] if permuted and tied else found


# ---------------------------------------------------------------- the box head


def stage_of(head: dict, assigner: dict | None = None) -> RoIStage:
    """A stage of an mmdetection `bbox_head` and `assigner`, in the authors' convention."""
    matcher = MaxIoUMatcher(convention="mmdet1")
    if assigner:
        matcher = MaxIoUMatcher(
            assigner["pos_iou_thr"], assigner["neg_iou_thr"], "mmdet1", assigner["min_pos_iou"]
        )
    return RoIStage(
        pooler=RoIAlign(size=head["roi_feat_size"], convention="mmdet1"),
        head=BoxHead(
            head["num_classes"] - 1,
            head["fc_out_channels"],
            head["num_fcs"],
            head["reg_class_agnostic"],
        ),
        matcher=matcher,
        sampler=RandomSampler(),
        coder=BoxCoder(head["target_stds"], "mmdet1"),
        smooth_l1_beta=head["loss_bbox"]["beta"],
    )


def box_outputs(case, stage: RoIStage) -> dict:
    """The raw outputs that the case gives, `[1, N, ...]`."""
    inputs = case.inputs()
    cls, reg = (
        inputs.get(f"{case.name}.{name}", inputs.get(name)) for name in ("cls_score", "bbox_pred")
    )
    outputs = {} if cls is None else {"classes": tf.constant(cls[None])}
    return {**outputs, "boxes": tf.constant(reg.reshape(1, len(reg), stage.head.columns, 4))}


def check_box_head(case, comparison: Comparison) -> None:
    """The dense layers: outputs and all gradients."""
    inputs = case.inputs()
    x, cls, reg = (inputs[f"{case.name}.{k}"] for k in ("x", "cot.cls_score", "cot.bbox_pred"))

    def results(dtype):
        config = case.config["head"]
        head = BoxHead(
            config["num_classes"] - 1,
            config["fc_out_channels"],
            config["num_fcs"],
            config["reg_class_agnostic"],
            dtype=dtype,
        )
        pooled = tf.cast(nhwc(x)[None], dtype)
        head.build(pooled.shape)
        cotangents = {"classes": cls[None], "boxes": reg.reshape(1, len(reg), head.columns, 4)}
        outputs, loss, by_pooled, gradients = layer_results(case, [head], pooled, cotangents)
        return outputs, loss, {**gradients, "out.grad_x": nchw(by_pooled[0])}

    outputs, loss, gradients = results("float32")
    comparison.output("out.cls_score", outputs["classes"][0])
    comparison.output("out.bbox_pred", outputs["boxes"][0].numpy().reshape(reg.shape))
    comparison.output("out.loss", *loss)
    compare_float32_gradients(comparison, gradients, lambda: results("float64")[2])


def check_box_loss(case, comparison: Comparison) -> None:
    """Assignment, and with the given samples targets, losses and gradients."""
    train_cfg = case.config["train_cfg"]
    stage, batch = stage_of(case.config["head"], train_cfg["assigner"]), padded_boxes(case)
    proposals, present = padded([case.data[f"in.proposals.{i}"][:, :4] for i in images_of(case)])
    boxes, matches = stage.candidates(tf.constant(proposals), tf.constant(present), batch)
    most = batch["boxes"].shape[1]
    for i in images_of(case):
        objects, labels = case.data[f"in.gt_bboxes.{i}"], case.data[f"in.gt_labels.{i}"]
        own = matches[i, most : most + present[i].sum()].numpy()
        comparison.equal(f"out.gt_inds.{i}", their_codes(own))
        comparison.equal(f"out.assigned_labels.{i}", np.where(own >= 0, np.r_[labels, 0][own], 0))
        overlaps = np.zeros(len(own), np.float32)
        if len(objects):
            overlaps = pairwise_iou(proposals[i, present[i]], objects, "mmdet1").numpy().max(axis=1)
        comparison.output(f"out.max_overlaps.{i}", overlaps)
        positives = case.data[f"in.pos_inds.{i}"]
        comparison.equal(f"out.pos_is_gt.{i}", positives < len(objects))
        kept = np.r_[np.arange(len(objects)), own][positives]
        comparison.equal(f"out.pos_assigned_gt_inds.{i}", kept)

    rows, here = given_samples(case, "")
    samples = stage.samples(boxes, matches, behind_padding(matches, rows), here, batch)
    compare_samples(case, comparison, samples)
    image = np.nonzero(here)[0][:, None]
    comparison.output("out.rois", np.hstack([image, samples["boxes"].numpy()[here]]))
    positive = samples["matches"].numpy()[here] >= 0
    comparison.equal("out.label_weights", np.ones(len(positive)))
    comparison.equal("out.bbox_weights", np.repeat(positive[:, None], 4, axis=1))

    raw = box_outputs(case, stage)
    places = tf.constant(np.argwhere(here))

    @tf.function(autograph=False)
    def run(raw):
        with tf.GradientTape() as tape:
            tape.watch(raw)
            outputs = {
                name: tf.scatter_nd(places, x[0], [*here.shape, *x.shape[2:]])
                for name, x in raw.items()
            }
            losses = stage.losses(outputs, samples)
            total = tf.add_n([*losses.values()])
        return losses, tape.gradient(total, raw)

    losses, gradients = run(raw)
    comparison.output("out.loss_cls", losses["classification"])
    comparison.output("out.loss_bbox", losses["box"])
    compare_accuracy(comparison, raw["classes"][0], samples["columns"].numpy()[here])
    comparison.output("out.grad_cls_score", gradients["classes"][0])
    boxes = gradients["boxes"][0].numpy()
    comparison.output("out.grad_bbox_pred", boxes.reshape(len(boxes), -1))


def compare_samples(case, comparison, samples, prefix="out."):
    """Classes and box codes of the samples, in the authors' order of boxes."""
    here = samples["present"].numpy() if tf.is_tensor(samples["present"]) else samples["present"]
    comparison.equal(f"{prefix}labels", samples["columns"].numpy()[here])
    comparison.output(f"{prefix}bbox_targets", samples["codes"].numpy()[here])


def compare_accuracy(comparison, logits, columns, prefix="out."):
    """How many of all boxes have their class on top, in percent."""
    right = np.argmax(logits, axis=-1) == columns
    comparison.output(f"{prefix}acc", np.array([100 * right.mean()]), scale=100.0)


def images_of(case) -> range:
    """The numbers of the images of a case with objects."""
    return range(len([key for key in case.data if key.startswith("in.gt_bboxes.")]))


def padded(arrays: Sequence[np.ndarray], value: float = 0.0):
    """`[N_i, ...]` arrays as one `[B, N, ...]`, and which entries are real."""
    most = max(map(len, arrays))
    present = np.stack([np.arange(most) < len(a) for a in arrays])
    rest = [[(0, 0)] * (a.ndim - 1) for a in arrays]
    stacked = [
        np.pad(a, [(0, most - len(a)), *r], constant_values=value) for a, r in zip(arrays, rest)
    ]
    return np.stack(stacked), present


def padded_boxes(case) -> dict:
    """The case's objects as a batch: labels from 0, padded with -1."""
    images = images_of(case)
    boxes, _ = padded([case.data[f"in.gt_bboxes.{i}"] for i in images], -1.0)
    labels, _ = padded([case.data[f"in.gt_labels.{i}"] - 1 for i in images], -1)
    return {"boxes": tf.constant(boxes), "labels": tf.constant(labels, tf.int32)}


def behind_padding(matches: tf.Tensor, rows: np.ndarray) -> tf.Tensor:
    """Rows of [objects; proposals] as rows of both padded, of which the matches are given.

    The authors ignore nothing here: what is ignored is padding.
    """
    places = tf.argsort(tf.cast(matches == IGNORED, tf.int32), axis=1, stable=True)
    return tf.gather(places, rows, axis=1, batch_dims=1)


def check_box_decoding(case, comparison: Comparison) -> None:
    """Boxes of every class, scores, and detections with and without division by the scale."""
    stage, settings = stage_of(case.config["head"]), case.config["test_cfg"]
    outputs, boxes = box_outputs(case, stage), tf.constant(case.data["in.rois"][None, :, 1:])
    image_sizes = tf.constant([case.config["img_shape"][:2]])
    present = tf.fill(boxes.shape[:2], True)
    decoded, scores = stage.scored_boxes(outputs, boxes, present, image_sizes)
    scale = np.asarray(case.config["scale_factor"], np.float32)
    if "out.boxes" in case.output_specs:
        every = decoded
        if not stage.head.class_agnostic:
            background = stage.refined(
                outputs, boxes, tf.zeros(boxes.shape[:2], tf.int32), image_sizes
            )
            every = tf.concat([background[:, :, None], decoded], axis=2)
        every = every[0].numpy()
        comparison.output("out.boxes", every.reshape(len(every), -1))
        comparison.output("out.boxes_rescaled", (every / scale).reshape(len(every), -1))
        comparison.output("out.scores", tf.nn.softmax(outputs["classes"][0]))
    for suffix, divisor in (("", np.float32(1)), ("_rescaled", scale)):
        if f"out.det_bboxes{suffix}" not in case.output_specs:
            continue
        found = multiclass_nms(
            decoded / divisor,
            scores,
            settings["score_thr"],
            settings["nms"]["iou_thr"],
            settings["max_per_img"],
            "mmdet1",
        )
        compare_detections(case, comparison, found, suffix)


def compare_detections(case, comparison, found, suffix="", prefix="out."):
    """Detections of one image; the authors sort them only where there are too many."""
    got = {name: value[0].numpy() for name, value in found.items()}
    count = got["num_detections"]
    detections = np.column_stack([got["boxes"], got["scores"], got["classes"]])[:count]
    boxes, labels = (case.data[f"{prefix}det_{name}{suffix}"] for name in ("bboxes", "labels"))
    order = np.argsort(-boxes[:, 4], kind="stable")
    wanted = np.column_stack([boxes, labels])[order]
    detections = in_their_order(detections, wanted)
    comparison.close(f"{prefix}det_bboxes{suffix}", detections[:, :4], wanted[:, :4])
    comparison.close(f"{prefix}det_bboxes{suffix}", detections[:, 4], wanted[:, 4])
    comparison.equal(f"{prefix}det_labels{suffix}", detections[:, 5], wanted[:, 5])


def check_refinement(case, comparison: Comparison) -> None:
    """Boxes between the stages of a cascade, in training and at test time."""
    stage, rois = stage_of(case.config["head"]), case.data["in.rois"]
    image_sizes = tf.constant([m["img_shape"][:2] for m in case.config["img_metas"]])
    outputs = box_outputs(case, stage)
    for i in range(len(image_sizes)):
        own = rois[:, 0] == i
        refined = stage.refined(
            {"boxes": tf.boolean_mask(outputs["boxes"], own, axis=1)},
            tf.constant(rois[None, own, 1:]),
            tf.constant(case.data["in.labels"][None, own]),
            image_sizes[i : i + 1],
        )[0].numpy()
        # The objects among the positives, which come first, are dropped in training.
        objects = case.data[f"in.pos_is_gt.{i}"].astype(bool)
        kept = ~np.pad(objects, (0, own.sum() - len(objects)))
        comparison.output(f"out.refined.{i}", refined[kept])
        if i == 0:
            comparison.output("out.regressed", np.hstack([rois[own, :1], refined]))
