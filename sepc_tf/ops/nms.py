"""From scored boxes to a fixed number of detections."""

import tensorflow as tf

from sepc_tf.ops.boxes import LAST_PIXEL

NMS_KINDS = ("hard", "soft", "class_agnostic")


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


def kept_rows(boxes, scores, present, iou_threshold, max_kept, convention="modern"):
    """Which boxes greedy non-maximum suppression keeps, all boxes of an image being of one class.

    In order of falling score a box is kept unless its IoU with a kept one is > `iou_threshold`; of
    equal scores the first one comes first.

    Args:
        boxes: `[B, N, 4]` float32 xyxy, N < 2^24.
        scores: `[B, N]` float32, any range.
        present: `[B, N]` bool, which boxes take part.
        iou_threshold: see above.
        max_kept: R, an int.
        convention: "modern" or "mmdet1" (widths count the last pixel).

    Returns:
        `[B, R]` int32 rows, best first (0 past the end), and `[B]` int32, how many there are.

    Example:
        >>> boxes = tf.constant([[[0.0, 0, 4, 4], [0, 0, 4, 3], [5, 0, 9, 4]]])
        >>> scores, present = tf.constant([[-3.0, 2.0, 1.0]]), tf.fill([1, 3], True)
        >>> rows, counts = kept_rows(boxes, scores, present, 0.5, max_kept=3)
        >>> rows.numpy(), counts.numpy()
        (array([[1, 2, 0]], dtype=int32), array([2], dtype=int32))
    """
    number = tf.shape(scores)[1]
    keys = tf.where(present, scores, tf.float32.min)
    order = tf.math.top_k(keys, k=number).indices
    boxes = tf.gather(boxes, order, axis=1, batch_dims=1)
    boxes += tf.constant([0.0, 0.0, 1.0, 1.0]) * LAST_PIXEL[convention]
    present = tf.gather(present, order, axis=1, batch_dims=1)
    # The operation returns no rows, but scores: given ranks for scores, it returns ranks.
    ranks = tf.cast(number - tf.range(number), tf.float32)
    ranks = tf.where(present, ranks, 0.0)
    _, kept, _, counts = tf.image.combined_non_max_suppression(
        boxes[:, :, None],
        ranks[..., None],
        max_output_size_per_class=max_kept,
        max_total_size=max_kept,
        iou_threshold=iou_threshold,
        score_threshold=0.5,
        clip_boxes=False,
    )
    rows = tf.minimum(number - tf.cast(kept, tf.int32), number - 1)
    rows = tf.gather(order, rows, axis=1, batch_dims=1)
    return tf.where(tf.range(max_kept)[None] < counts[:, None], rows, 0), counts


def multiclass_nms(
    boxes,
    scores,
    score_threshold=0.05,
    iou_threshold=0.5,
    max_detections=100,
    convention="modern",
    kind="hard",
    soft_sigma=0.5,
):
    """Greedy non-maximum suppression, then the best over all classes.

    - "hard": in each class, in order of falling score, a box with a score > `score_threshold` is
      kept unless its IoU with a kept one is > `iou_threshold`.
    - "soft": in each class the best box is kept, the scores of the others are multiplied by
      `exp(-IoU^2 / soft_sigma)`, and so on with the best of these. Scores are as multiplied.
    - "class_agnostic": as "hard", but a box has only its best class, and suppresses boxes of all.

    Boxes without area are never kept in "modern" (the authors keep them).

    Args:
        boxes: `[B, N, 4]` float32 xyxy, shared by all classes, or `[B, N, K, 4]`.
        scores: `[B, N, K]` float32.
        score_threshold: see above.
        iou_threshold: see above; not used by "soft".
        max_detections: length D of the result.
        convention: "modern" or "mmdet1" (widths count the last pixel).
        kind: "hard", "soft" or "class_agnostic".
        soft_sigma: of "soft".

    Returns:
        dict of `boxes` `[B, D, 4]` float32 xyxy, `scores` `[B, D]` float32, `classes` `[B, D]`
        int32 (-1 past the end) and `num_detections` `[B]` int32; best score first, zeros past the
        end.

    Example:
        >>> boxes = tf.constant([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0]]])
        >>> multiclass_nms(boxes, tf.constant([[[0.5], [0.9]]]))["num_detections"].numpy()
        array([1], dtype=int32)

    Source: Soft-NMS: arXiv 1704.04503, section 3.
    """
    # With the last pixel put into the corner the operation's own areas are the convention's.
    last_pixel = tf.constant([0.0, 0.0, 1.0, 1.0]) * LAST_PIXEL[convention]
    per_class = boxes.shape.rank == 4
    extent = tf.zeros([tf.shape(boxes)[0]])
    if per_class and convention == "mmdet1" and kind == "hard":
        # The authors move the classes apart; at such coordinates float32 rounds the IoUs.
        candidates = tf.where((scores > score_threshold)[..., None], boxes, 0.0)
        extent = tf.reduce_max(candidates, axis=[1, 2, 3]) + 1.0
        moved = tf.range(tf.shape(scores)[2], dtype=tf.float32) * extent[:, None]
        boxes = boxes + moved[:, None, :, None]
    corners = boxes + last_pixel
    if not per_class:
        corners = corners[:, :, None]
    if convention == "modern":
        has_area = tf.reduce_all(corners[..., 2:] > corners[..., :2], axis=-1)
        scores = tf.where(has_area, scores, 0.0)
    if kind == "hard":
        found, found_scores, classes, counts = tf.image.combined_non_max_suppression(
            corners,
            scores,
            max_output_size_per_class=max_detections,
            max_total_size=max_detections,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            clip_boxes=False,
        )
    else:
        of_image = _soft_nms if kind == "soft" else _class_agnostic_nms
        parameter = soft_sigma if kind == "soft" else iou_threshold
        found, found_scores, classes, counts = tf.map_fn(
            lambda image: of_image(*image, score_threshold, parameter, max_detections),
            (corners, scores),
            fn_output_signature=(
                tf.TensorSpec([max_detections, 4], tf.float32),
                tf.TensorSpec([max_detections], tf.float32),
                tf.TensorSpec([max_detections], tf.int32),
                tf.TensorSpec([], tf.int32),
            ),
        )
    present = tf.range(max_detections)[None] < counts[:, None]
    back = tf.cast(classes, tf.float32) * extent[:, None]
    return {
        "boxes": tf.where(present[..., None], found - last_pixel - back[..., None], 0.0),
        "scores": tf.where(present, found_scores, 0.0),
        "classes": tf.where(present, tf.cast(classes, tf.int32), -1),
        "num_detections": counts,
    }


def _soft_nms(boxes, scores, score_threshold, sigma, max_detections):
    """Soft suppression in one image: all classes in one call, classes moved apart."""
    rows, classes = tf.unstack(tf.cast(tf.where(scores > score_threshold), tf.int32), axis=1)
    candidates = _of_class(boxes, rows, classes)
    extent = tf.reduce_max(boxes) - tf.reduce_min(boxes) + 1.0
    apart = candidates + (tf.cast(classes, tf.float32) * extent)[:, None]
    kept, kept_scores = tf.image.non_max_suppression_with_scores(
        apart,
        tf.gather_nd(scores, tf.stack([rows, classes], axis=1)),
        max_detections,
        iou_threshold=1.0,
        score_threshold=score_threshold,
        soft_nms_sigma=sigma / 2,  # this operation multiplies by exp(-IoU^2 / (2 sigma))
    )
    return _padded(
        tf.gather(candidates, kept), kept_scores, tf.gather(classes, kept), max_detections
    )


def _class_agnostic_nms(boxes, scores, score_threshold, iou_threshold, max_detections):
    """Hard suppression in one image among all boxes, each with its best class."""
    best = tf.reduce_max(scores, axis=1)
    classes = tf.argmax(scores, axis=1, output_type=tf.int32)
    boxes = _of_class(boxes, tf.range(tf.size(classes)), classes)
    kept = tf.image.non_max_suppression(boxes, best, max_detections, iou_threshold, score_threshold)
    boxes, best, classes = (tf.gather(x, kept) for x in (boxes, best, classes))
    return _padded(boxes, best, classes, max_detections)


def _of_class(boxes, rows, classes):
    """Of `[N, 1, 4]` or `[N, K, 4]` boxes the one of each row and class, `[R, 4]`."""
    classes = classes * tf.cast(tf.shape(boxes)[1] > 1, tf.int32)
    return tf.gather_nd(boxes, tf.stack([rows, classes], axis=1))


def _padded(boxes, scores, classes, length):
    count = tf.size(scores)
    rest = [[0, length - count]]
    boxes = tf.pad(boxes, [*rest, [0, 0]])
    return boxes, tf.pad(scores, rest), tf.pad(classes, rest), count
