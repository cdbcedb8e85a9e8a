"""Element-wise losses of detectors, in float32, without any reduction over the batch."""

import tensorflow as tf

from sepc_tf.ops.boxes import aligned_iou


def sigmoid_focal_loss(labels, logits, alpha=0.25, gamma=2.0):
    """Focal loss of independent binary decisions.

    `-a (1 - q)^gamma ln q` with `q = p, a = alpha` where the label is 1 and `q = 1 - p,
    a = 1 - alpha` where it is 0; p = sigmoid(logit).

    Args:
        labels: 0 or 1, same shape and dtype as `logits`.
        logits: raw scores.
        alpha: weight of the positive decisions.
        gamma: how strongly easy decisions are weighed down.

    Returns:
        The loss of each element.

    Example:
        >>> loss = sigmoid_focal_loss(tf.constant([1.0]), tf.constant([0.0]))  # ln(2) / 16
        >>> round(float(loss[0]), 5)
        0.04332

    Source: arXiv 1708.02002, equation 5.
    """
    probability = tf.sigmoid(logits)
    miss = (1.0 - probability) * labels + probability * (1.0 - labels)
    weight = alpha * labels + (1.0 - alpha) * (1.0 - labels)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
    return weight * miss**gamma * cross_entropy


def smooth_l1_loss(targets, predictions, beta=0.11):
    """Smooth L1: `0.5 d^2 / beta` where `d = |target - prediction| < beta`, else `d - 0.5 beta`.

    Args:
        targets: any shape.
        predictions: same shape.
        beta: where the parabola becomes a line.

    Returns:
        The loss of each element (not averaged over coordinates).

    Example:
        >>> smooth_l1_loss(tf.constant([0.0, 0.0]), tf.constant([0.11, 1.0])).numpy()
        array([0.055, 0.945], dtype=float32)

    Source: Fast R-CNN (arXiv 1504.08083), equation 3.
    """
    difference = tf.abs(targets - predictions)
    return tf.where(
        difference < beta, 0.5 * difference * difference / beta, difference - 0.5 * beta
    )


def tblr_iou_loss(targets, predictions, epsilon=1e-6, min_union=1.0):
    """`-ln IoU` of two boxes given by their distances from a common point inside both.

    `I = (min(b, b') + min(t, t')) (min(l, l') + min(r, r'))`; the union is at least `min_union`,
    the IoU at least `epsilon`.

    Args:
        targets: `[..., 4]` distances bottom, top, left, right.
        predictions: `[..., 4]`.
        epsilon: smallest IoU.
        min_union: smallest union, in squared units of the distances.

    Returns:
        `[...]`.

    Example:
        >>> loss = tblr_iou_loss(tf.constant([[1.0, 1, 1, 1]]), tf.constant([[1.0, 1, 1, 0]]))
        >>> round(float(loss[0]), 5)  # -ln(1 / 2)
        0.69315

    Source: UnitBox (arXiv 1608.01471), as FSAF uses it.
    """
    overlap = tf.minimum(targets, predictions)
    area, other, intersection = (
        (x[..., 0] + x[..., 1]) * (x[..., 2] + x[..., 3]) for x in (targets, predictions, overlap)
    )
    union = tf.maximum(area + other - intersection, min_union)
    return -tf.math.log(tf.maximum(intersection / union, epsilon))


def iou_loss(targets, predictions, kind="iou", convention="modern", epsilon=1e-6):
    """`-ln IoU` or `1 - GIoU` of boxes.

    Args:
        targets: `[..., 4]` xyxy.
        predictions: `[..., 4]` xyxy.
        kind: "iou" (the IoU is at least `epsilon` in the logarithm) or "giou".
        convention: "modern" or "mmdet1".
        epsilon: see above.

    Returns:
        `[...]`.

    Example:
        >>> a, b = tf.constant([[0.0, 0, 2, 2]]), tf.constant([[0.0, 0, 2, 1]])
        >>> iou_loss(a, b, "giou").numpy()
        array([0.5], dtype=float32)

    Source: UnitBox (arXiv 1608.01471), equation 2; GIoU (arXiv 1902.09630), algorithm 2.
    """
    if kind == "giou":
        return 1.0 - aligned_iou(targets, predictions, convention, generalized=True)
    return -tf.math.log(tf.maximum(aligned_iou(targets, predictions, convention), epsilon))
