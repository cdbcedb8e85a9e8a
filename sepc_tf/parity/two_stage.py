"""Family of cases: two-stage detectors; so far RoIAlign and the choice of levels."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from sepc_tf.ops.roi_align import roi_align, roi_levels
from sepc_tf.parity.comparing import OPERATOR_TOLERANCE, Comparison
from sepc_tf.parity.golden import level_inputs, nchw, nhwc


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
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

    @tf.function
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
