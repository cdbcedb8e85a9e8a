"""Boxes: conventions, areas, overlaps, clipping. All boxes are float32 xyxy in pixels.

Two conventions exist, and every object that depends on one takes its name:

| | "modern" (default) | "mmdet1" (the authors' code, mmdetection 1.x) |
|---|---|---|
| width of a box | x2 - x1 | x2 - x1 + 1 |
| range of x after clipping | [0, width] | [0, width - 1] |
| centre of the anchor in cell (0, 0) | stride / 2 | (stride - 1) / 2 |
| corners of the anchors | exact | rounded to integers |
| a box no anchor touches | claims nothing | claims every anchor |
| RepPoints: location of cell (0, 0) | stride / 2 | 0 |
| FSAF: object that wins a cell | the smaller one | by the sorting permutation, see `fsaf` |
"""

import tensorflow as tf

# Width of the last pixel: what is added to x2 - x1.
LAST_PIXEL = {"modern": 0.0, "mmdet1": 1.0}
# In pixels, and so far below the steps of a float32 coordinate that a shorter side is none.
SMALLEST_SIDE = 1e-6


def check_convention(name):
    """Returns `name` if it is a known convention.

    Raises:
        ValueError: it is none.
    """
    if name not in LAST_PIXEL:
        raise ValueError(f"convention must be one of {sorted(LAST_PIXEL)}; got {name!r}")
    return name


def box_areas(boxes, convention="modern"):
    """Areas of boxes.

    Args:
        boxes: `[..., 4]` xyxy.
        convention: "modern" or "mmdet1" (widths count the last pixel).

    Returns:
        `[...]` areas in square pixels; negative where exactly one side is negative.

    Example:
        >>> box_areas([[0.0, 0.0, 3.0, 1.0]], "mmdet1").numpy()
        array([8.], dtype=float32)
    """
    sides = tf.convert_to_tensor(boxes)
    sides = sides[..., 2:] - sides[..., :2] + LAST_PIXEL[convention]
    return sides[..., 0] * sides[..., 1]


def has_area(boxes, convention="modern"):
    """Which boxes have two sides; the others are to be treated as padding.

    Clipping and scaling in float32 can leave a box of zero width, whose logarithm an encoder
    would take. "mmdet1" counts the last pixel: there a box with `x2 = x1` has a width of 1.

    Args:
        boxes: `[..., 4]` xyxy.
        convention: "modern" or "mmdet1".

    Returns:
        `[...]` bool.

    Example:
        >>> boxes = [[5.0, 0.0, 5.0, 8.0], [5.0, 0.0, 6.0, 8.0]]
        >>> has_area(boxes).numpy(), has_area(boxes, "mmdet1").numpy()
        (array([False,  True]), array([ True,  True]))
    """
    boxes = tf.convert_to_tensor(boxes)
    sides = boxes[..., 2:] - boxes[..., :2] + LAST_PIXEL[convention]
    return tf.reduce_all(sides >= SMALLEST_SIDE, axis=-1)


def pairwise_intersections(boxes_a, boxes_b, convention="modern"):
    """Areas of the intersections of every box of one set with every box of another.

    Args:
        boxes_a: `[..., N, 4]` xyxy.
        boxes_b: `[..., M, 4]` xyxy; leading axes broadcast.
        convention: "modern" or "mmdet1".

    Returns:
        `[..., N, M]` areas in square pixels.
    """
    a, b = boxes_a[..., :, None, :], boxes_b[..., None, :, :]
    # One side after the other: [N, M] temporaries instead of [N, M, 2].
    width, height = (
        tf.maximum(
            tf.minimum(a[..., i + 2], b[..., i + 2])
            - tf.maximum(a[..., i], b[..., i])
            + LAST_PIXEL[convention],
            0.0,
        )
        for i in range(2)
    )
    return width * height


def pairwise_iou(boxes_a, boxes_b, convention="modern"):
    """Intersection over union of every box of one set with every box of another.

    Args:
        boxes_a: `[..., N, 4]` xyxy.
        boxes_b: `[..., M, 4]` xyxy; leading axes broadcast.
        convention: "modern" or "mmdet1" (widths count the last pixel).

    Returns:
        `[..., N, M]` in [0, 1]; 0 where the union is empty.

    Example:
        >>> pairwise_iou([[0.0, 0.0, 2.0, 2.0]], [[0.0, 0.0, 2.0, 1.0]]).numpy()
        array([[0.5]], dtype=float32)
    """
    boxes_a, boxes_b = tf.convert_to_tensor(boxes_a), tf.convert_to_tensor(boxes_b)
    intersections = pairwise_intersections(boxes_a, boxes_b, convention)
    areas_a = box_areas(boxes_a, convention)[..., :, None]
    areas_b = box_areas(boxes_b, convention)[..., None, :]
    return tf.math.divide_no_nan(intersections, areas_a + areas_b - intersections)


def clip_boxes(boxes, image_sizes, convention="modern"):
    """Moves the corners of boxes into their image.

    Args:
        boxes: `[B, ..., 4]` xyxy.
        image_sizes: `[B, 2]` height, width.
        convention: "modern" clips x to [0, width], "mmdet1" to [0, width - 1].

    Returns:
        `[B, ..., 4]` xyxy.
    """
    limits = _for_corners(image_sizes, boxes) - LAST_PIXEL[convention]
    return tf.minimum(tf.maximum(boxes, 0.0), limits)


def rescale_boxes(boxes, image_sizes, original_sizes, convention="modern"):
    """Boxes of a resized image in pixels of the original one.

    `x <- x original_width / width`, y alike. "modern" then moves the corners into the original
    image, the authors leave them.

    Args:
        boxes: `[B, ..., 4]` xyxy.
        image_sizes: `[B, 2]` height, width of the resized images.
        original_sizes: `[B, 2]` height, width that these have in the pixels wanted, whole or not;
            see `sepc_tf.data.preprocess.frame_sizes`.
        convention: "modern" or "mmdet1".

    Returns:
        `[B, ..., 4]` xyxy.

    Example:
        >>> boxes = tf.constant([[[0.0, 1.0, 4.0, 4.0]]])
        >>> rescale_boxes(boxes, [[4, 4]], [[8, 2]]).numpy()
        array([[[0., 2., 2., 8.]]], dtype=float32)
    """
    original_sizes = tf.cast(original_sizes, boxes.dtype)
    scale = original_sizes / tf.cast(image_sizes, boxes.dtype)
    boxes = boxes * _for_corners(scale, boxes)
    return boxes if convention == "mmdet1" else clip_boxes(boxes, original_sizes)


def _for_corners(sizes, boxes):
    """`[B, 2]` (height, width) as (x, y, x, y), to broadcast with `[B, ..., 4]` boxes."""
    height, width = tf.unstack(tf.cast(sizes, boxes.dtype), axis=-1)
    corners = tf.stack([width, height, width, height], axis=-1)
    return tf.reshape(corners, [-1, *[1] * (len(boxes.shape) - 2), 4])


def aligned_iou(boxes_a, boxes_b, convention="modern", generalized=False):
    """Intersection over union of each box of one set with its partner in another.

    `IoU = I / U`; generalised: `IoU - (C - U) / C`, C the area of the smallest box around both.

    Args:
        boxes_a, boxes_b: `[..., 4]` xyxy.
        convention: "modern" or "mmdet1" (widths count the last pixel).
        generalized: whether the generalised form is wanted, in [-1, 1].

    Returns:
        `[...]`; IoU is 0 where the union is empty.

    Example:
        >>> aligned_iou(tf.constant([[0.0, 0, 2, 2]]), tf.constant([[0.0, 0, 2, 1]])).numpy()
        array([0.5], dtype=float32)

    Source: GIoU: arXiv 1902.09630, section 3.
    """
    last = LAST_PIXEL[convention]

    def area(top_left, bottom_right):
        sides = tf.maximum(bottom_right - top_left + last, 0.0)
        return sides[..., 0] * sides[..., 1]

    a1, a2 = boxes_a[..., :2], boxes_a[..., 2:]
    b1, b2 = boxes_b[..., :2], boxes_b[..., 2:]
    intersection = area(tf.maximum(a1, b1), tf.minimum(a2, b2))
    union = area(a1, a2) + area(b1, b2) - intersection
    iou = tf.math.divide_no_nan(intersection, union)
    if not generalized:
        return iou
    enclosing = area(tf.minimum(a1, b1), tf.maximum(a2, b2))
    return iou - tf.math.divide_no_nan(enclosing - union, enclosing)
