"""From scored boxes to a fixed number of detections."""

import tensorflow as tf

from sepc_tf.ops.boxes import LAST_PIXEL


def top_candidates(scores, count):
    """The `count` best rows of each image by their highest score.

    Args:
        scores: `[B, N, K]`.
        count: rows wanted; all N when there are fewer.

    Returns:
        `[B, min(N, count)]` int32 row indices, best first.
    """
    rows = scores.shape[1] if scores.shape[1] is not None else tf.shape(scores)[1]
    count = min(rows, count) if isinstance(rows, int) else tf.minimum(rows, count)
    return tf.math.top_k(tf.reduce_max(scores, axis=2), k=count).indices


def multiclass_nms(
    boxes, scores, score_threshold=0.05, iou_threshold=0.5, max_detections=100, convention="modern"
):
    """Greedy non-maximum suppression of each class by itself, then the best over all classes.

    In each class, in order of falling score, a box with a score > `score_threshold` is kept unless
    its IoU with a kept one is > `iou_threshold`. Boxes without area are never kept in "modern"
    (the authors keep them).

    Args:
        boxes: `[B, N, 4]` float32 xyxy, shared by all classes.
        scores: `[B, N, K]` float32.
        score_threshold: see above.
        iou_threshold: see above.
        max_detections: length D of the result.
        convention: "modern" or "mmdet1" (widths count the last pixel).

    Returns:
        dict of `boxes` `[B, D, 4]` float32 xyxy, `scores` `[B, D]` float32, `classes` `[B, D]`
        int32 (-1 past the end) and `num_detections` `[B]` int32; best score first, zeros past the
        end.

    Example:
        >>> boxes = tf.constant([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0]]])
        >>> multiclass_nms(boxes, tf.constant([[[0.5], [0.9]]]))["num_detections"].numpy()
        array([1], dtype=int32)
    """
    # With the last pixel put into the corner the operation's own areas are the convention's.
    last_pixel = tf.constant([0.0, 0.0, 1.0, 1.0]) * LAST_PIXEL[convention]
    corners = boxes + last_pixel
    if convention == "modern":
        has_area = tf.reduce_all(corners[..., 2:] > corners[..., :2], axis=-1, keepdims=True)
        scores = tf.where(has_area, scores, 0.0)
    kept = tf.image.combined_non_max_suppression(
        corners[:, :, None],
        scores,
        max_output_size_per_class=max_detections,
        max_total_size=max_detections,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        clip_boxes=False,
    )
    present = tf.range(max_detections)[None] < kept.valid_detections[:, None]
    return {
        "boxes": tf.where(present[..., None], kept.nmsed_boxes - last_pixel, 0.0),
        "scores": tf.where(present, kept.nmsed_scores, 0.0),
        "classes": tf.where(present, tf.cast(kept.nmsed_classes, tf.int32), -1),
        "num_detections": kept.valid_detections,
    }
