"""Family of cases: RepPoints, from single point sets to the whole detector."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from sepc_tf import compat
from sepc_tf.checkpoints import import_state_dict, mmdet_names, named_variables
from sepc_tf.config import BackboneConfig, DetectorConfig, HeadConfig
from sepc_tf.detectors.reppoints import RepPointsOptions
from sepc_tf.detectors.reppoints_head import RepPointsHead
from sepc_tf.necks import ConvTowers
from sepc_tf.ops.matching import BACKGROUND, IGNORED
from sepc_tf.ops.point_sets import TRANSFORMS, point_set_boxes, scale_gradient
from sepc_tf.parity.comparing import (
    NETWORK_TOLERANCE,
    OPERATOR_TOLERANCE,
    Comparison,
    relative_error,
)
from sepc_tf.parity.dense import compare_decoding, padded_batch, split_levels
from sepc_tf.parity.fusion import neck_config
from sepc_tf.parity.golden import level_inputs, nchw, nhwc
from sepc_tf.parity.modules import compare_float32_gradients, typical_loss
from sepc_tf.parity.networks import backbone_config
from sepc_tf.zoo import build_detector


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
    if "moment_mul" in config:
        return check_point_set_boxes, OPERATOR_TOLERANCE
    if _is_reppoints(config.get("head")):
        if "test_cfg" in config:
            return check_decoding, OPERATOR_TOLERANCE
        if "train_cfg" in config:
            # They subtract boxes in pixels: a rounding there is 1e-5 of beta.
            return check_losses, NETWORK_TOLERANCE
        return check_head, NETWORK_TOLERANCE
    model = config.get("model")
    if isinstance(model, dict) and _is_reppoints(model.get("bbox_head")):
        return check_detector, NETWORK_TOLERANCE
    return None


def _is_reppoints(head):
    return isinstance(head, dict) and head["type"] == "RepPointsHead"


def _norm(head):
    return "group" if head["norm_cfg"] else None


def reppoints_options(head, train_cfg=None):
    """`RepPointsOptions` of an mmdetection `bbox_head` and its `train_cfg`."""
    options = RepPointsOptions(
        strides=head["point_strides"],
        num_points=head["num_points"],
        point_filters=head["point_feat_channels"],
        transform=head["transform_method"],
        gradient_scale=head["gradient_mul"],
        point_scale=head["point_base_scale"],
        focal_alpha=head["loss_cls"]["alpha"],
        focal_gamma=head["loss_cls"]["gamma"],
        classification_weight=head["loss_cls"]["loss_weight"],
        smooth_l1_beta=head["loss_bbox_init"]["beta"],
        box_init_weight=head["loss_bbox_init"]["loss_weight"],
        box_refine_weight=head["loss_bbox_refine"]["loss_weight"],
    )
    if train_cfg:
        assigner = train_cfg["refine"]["assigner"]
        options.positive_iou = assigner["pos_iou_thr"]
        options.negative_iou = assigner["neg_iou_thr"]
    return options


def head_detector(case):
    """A detector of the case's head and classes, in the authors' convention; tiny elsewhere."""
    config = DetectorConfig(
        type="reppoints",
        convention="mmdet1",
        backbone=BackboneConfig(depth=18, width=8),
        head=HeadConfig(variant="baseline", filters=8, num_convs=0),
        options=reppoints_options(case.config["head"], case.config.get("train_cfg")),
    )
    detector = build_detector(config, num_classes=case.config["num_classes_with_background"] - 1)
    if "moment_transfer" in case.inputs():
        detector.head.moment_transfer.assign(case.inputs()["moment_transfer"])
    return detector


def raw_outputs(case):
    """Outputs of the head as the case gives them; without the first points in decoding cases."""
    return {
        "classification": level_inputs(case, "cls"),
        "points_init": level_inputs(case, "pts_init"),
        "points_refine": level_inputs(case, "pts_refine"),
    }


def check_point_set_boxes(case, comparison: Comparison) -> None:
    """Boxes of point sets by all transforms, and their gradients."""
    inputs = {key.removeprefix("points2bbox."): value for key, value in case.inputs().items()}
    points, moments = nhwc(inputs["pts"]), tf.constant(inputs["moment_transfer"])
    for transform in TRANSFORMS:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([points, moments])
            log_scale = scale_gradient(moments, case.config["moment_mul"])
            boxes = point_set_boxes(points, transform, log_scale if transform == "moment" else None)
            total = tf.reduce_sum(boxes * nhwc(inputs[f"cot.{transform}"]))
        comparison.output(f"out.{transform}", nchw(boxes))
        comparison.output(f"out.grad_pts.{transform}", nchw(tape.gradient(total, points)))
        if transform == "moment":
            comparison.output("out.grad.moment_transfer", tape.gradient(total, moments))


def check_head(case, comparison: Comparison) -> None:
    """Towers and head: outputs, boxes, and gradients of inputs and parameters."""
    outputs = ("cls", "pts_init", "pts_refine", "bbox_init", "bbox_refine")
    cotangents = {name: level_inputs(case, f"cot.{name}") for name in outputs}
    results = head_results(case, cotangents, "float32")
    gradients = {key: value for key, value in results.items() if key.startswith("out.grad")}
    for key in results.keys() - gradients.keys():
        unit = typical_loss(results, cotangents) if key == "out.loss" else 0.0
        comparison.output(key, results[key], unit)
    compare_float32_gradients(
        comparison, gradients, lambda: head_results(case, cotangents, "float64")
    )


def head_results(case, cotangents, dtype):
    """Everything the case stores of its towers and head, computed in `dtype`, by golden names."""
    config = case.config["head"]
    towers = ConvTowers(
        config["feat_channels"], config["stacked_convs"], norm=_norm(config), dtype=dtype
    )
    head = RepPointsHead(
        config["num_classes"] - 1,
        filters=config["point_feat_channels"],
        num_points=config["num_points"],
        transform=config["transform_method"],
        gradient_scale=config["gradient_mul"],
        dtype=dtype,
    )
    pyramid = [tf.cast(x, dtype) for x in level_inputs(case, "x")]
    towers.build([x.shape for x in pyramid])
    head.build(towers.compute_output_shape([x.shape for x in pyramid]))
    params, variables = case.params(), {}
    for part in (towers, head):
        keys = {path: key for path, (key, _) in mmdet_names(part).items()}
        import_state_dict(part, {key: params[key] for key in keys.values()})
        for path, variable in named_variables(part).items():
            variables[keys[path]] = compat.variable_value(variable)
    cotangents = tf.nest.map_structure(lambda x: tf.cast(x, dtype), cotangents)

    @tf.function(autograph=False)
    def run(pyramid):
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            raw = head(towers(pyramid))
            outputs = {
                "cls": raw["classification"],
                "pts_init": raw["points_init"],
                "pts_refine": raw["points_refine"],
                "bbox_init": [head.boxes(x) for x in raw["points_init"]],
                "bbox_refine": [head.boxes(x) for x in raw["points_refine"]],
            }
            products = tf.nest.map_structure(
                lambda y, cotangent: tf.reduce_sum(y * cotangent), outputs, cotangents
            )
            loss = tf.add_n(tf.nest.flatten(products))
        return outputs, loss, *tape.gradient(loss, (pyramid, variables))

    outputs, loss, input_gradients, gradients = run(pyramid)
    results = {
        f"out.{name}.{i}": nchw(x) for name, maps in outputs.items() for i, x in enumerate(maps)
    }
    results["out.loss"] = loss.numpy()
    results |= {f"out.grad_x.{i}": nchw(x) for i, x in enumerate(input_gradients)}
    for key, gradient in gradients.items():
        gradient = gradient.numpy()
        is_kernel = gradient.ndim == 4
        results[f"out.grad.{key}"] = gradient.transpose(3, 2, 0, 1) if is_kernel else gradient
    return results


def check_losses(case, comparison: Comparison) -> None:
    """Locations, targets of both stages, losses, gradients."""
    detector, batch, outputs = head_detector(case), padded_batch(case), raw_outputs(case)
    # The padding is the case's own, whatever it is a multiple of.
    detector.size_divisor = 1
    batch["image_sizes"] = tf.constant([m["pad_shape"][:2] for m in case.config["img_metas"]])
    compare_targets(case, comparison, detector, batch, outputs)
    moments = compat.variable_value(detector.head.moment_transfer)

    @tf.function(autograph=False)
    def run(outputs):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            losses = detector.compute_losses(outputs, batch)
            total = tf.add_n(list(losses.values()))
        return losses, total, *tape.gradient(total, (outputs, moments))

    losses, total, gradients, moments_gradient = run(outputs)
    comparison.output("out.loss", total)
    comparison.output("out.grad.moment_transfer", moments_gradient)
    levels = range(len(gradients["classification"]))
    names = {"classification": "cls", "box_init": "pts_init", "box_refine": "pts_refine"}
    for name, theirs in names.items():
        keys = [f"out.loss_{theirs}.{i}" for i in levels]
        error = relative_error(losses[name], np.sum([case.data[key] for key in keys]))
        for key in keys:
            comparison.record(key, error)
    names = {"classification": "cls", "points_init": "pts_init", "points_refine": "pts_refine"}
    for name, theirs in names.items():
        keys = [f"out.grad_{theirs}.{i}" for i in levels]
        # Coarse levels may hold next to nothing: all levels in units of the largest.
        largest = max(np.abs(case.data[key]).max() for key in keys)
        for key, level in zip(keys, gradients[name]):
            comparison.close(key, nchw(level), scale=largest)


def compare_targets(case, comparison, detector, batch, outputs):
    """What the cells should predict in both stages, level by level."""
    targets = detector.label_cells(outputs, batch)
    boxes, labels = batch["boxes"].numpy(), batch["labels"].numpy()
    images = np.arange(len(boxes))[:, None]
    arrays = {
        "valid": detector.valid_cells(outputs, batch),
        "refine_candidates": targets["candidates"],
    }
    totals = {"pos": [], "neg": []}
    for stage in ("init", "refine"):
        matches = targets[stage].numpy()
        matched = matches >= 0
        arrays |= {
            f"{stage}_labels": np.where(matched, labels[images, matches] + 1, 0),
            f"{stage}_label_weights": matches != IGNORED,
            f"{stage}_bbox_gt": np.where(matched[..., None], boxes[images, matches], 0.0),
            f"{stage}_weights": np.repeat(matched[..., None], 4, axis=-1),
        }
        for name, flags in (("pos", matched), ("neg", matches == BACKGROUND)):
            totals[name].append(np.maximum(flags.sum(axis=1), 1).sum())
    for name, array in arrays.items():
        compare = comparison.close if name.endswith(("gt", "candidates")) else comparison.equal
        for i, level in enumerate(split_levels(array, outputs, 1)):
            compare(f"out.{name}.{i}", level)
    comparison.equal("out.num_total_pos", totals["pos"])
    comparison.equal("out.num_total_neg", totals["neg"])

    points = outputs["points_init"]
    for i, (place, stride) in enumerate(
        zip(detector.locations(outputs), detector.point_matcher.strides)
    ):
        comparison.close(f"out.points.{i}", np.pad(place, [(0, 0), (0, 1)], constant_values=stride))
        if f"out.pts_coordinates_init.{i}" not in case.output_specs:
            continue
        batch_size, cells = points[i].shape[0], len(place)
        # Theirs are in pixels and x first.
        xy = points[i].numpy().reshape(batch_size, cells, -1, 2)[..., ::-1] * stride
        pixels = (xy + place.numpy()[:, None]).reshape(batch_size, cells, -1)
        comparison.close(f"out.pts_coordinates_init.{i}", pixels)


def check_decoding(case, comparison: Comparison) -> None:
    """Candidates before NMS and detections after it."""
    compare_decoding(case, comparison, head_detector(case), raw_outputs(case))


def check_detector(case, comparison: Comparison) -> None:
    """Pyramid, raw outputs and boxes of a whole detector in evaluation."""
    model = case.config["model"]
    head = model["bbox_head"]
    config = DetectorConfig(
        type="reppoints",
        convention="mmdet1",
        backbone=backbone_config(model["backbone"]),
        necks=[neck_config(model["neck"])],
        head=HeadConfig(
            variant="baseline",
            filters=head["feat_channels"],
            num_convs=head["stacked_convs"],
            normalization=_norm(head),
        ),
        options=reppoints_options(head),
    )
    detector = build_detector(config, num_classes=head["num_classes"] - 1)
    import_state_dict(detector, case.params())

    @tf.function(autograph=False)
    def run(image):
        return detector.pyramid(image, training=False), detector(image, training=False)

    pyramid, outputs = run(nhwc(case.inputs()["img"]))
    groups = {
        "fpn": pyramid,
        "cls": outputs["classification"],
        "pts_init": outputs["points_init"],
        "pts_refine": outputs["points_refine"],
        "bbox_refine": [detector.head.boxes(x) for x in outputs["points_refine"]],
    }
    for name, maps in groups.items():
        for i, level in enumerate(maps):
            comparison.output(f"out.{name}.{i}", nchw(level))
