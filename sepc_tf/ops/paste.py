"""From a small map of probabilities in a box to a mask of the image.

In "modern" a cell k of n covers `[k, k + 1] / n` of the box, and a pixel of the image is taken at
its centre: with the box from `low` to `high` pixel c lies at `(c + 0.5 - low) / (high - low) n -
0.5` cells. In "mmdet1" the corners are cut to whole numbers and the box ends with its last pixel:
pixel c lies at `(c - low + 0.5) n / (max(high - low, 0) + 1) - 0.5`. Between centres of cells the
probability is interpolated linearly, beyond the outermost ones it stays. A pixel of the box is part
of the mask where it is above 0.5; outside of the box there is no mask.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from sepc_tf.ops.boxes import check_convention

THRESHOLD = 0.5


def paste_masks(
    masks: tf.Tensor,
    boxes: tf.Tensor,
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    convention: str = "modern",
) -> tf.Tensor:
    """Masks of images from probabilities in boxes, all at once.

    Args:
        masks: `[..., D, n, n]` probabilities of any float dtype.
        boxes: `[..., D, 4]` xyxy, pixels of the image, in the convention.
        height, width: of the image, pixels.
        convention: "modern" or "mmdet1".

    Returns:
        bool `[..., D, height, width]`.

    Raises:
        ValueError: unknown convention.

    Example:
        >>> boxes = tf.constant([[1.0, 0.0, 3.0, 2.0]])
        >>> paste_masks(tf.ones([1, 28, 28]), boxes, 3, 4).numpy().astype(int)
        array([[[0, 1, 1, 0],
                [0, 1, 1, 0],
                [0, 0, 0, 0]]])

    Source: "mmdet1" as `FCNMaskHead.get_seg_masks` of mmdetection 1.
    """
    check_convention(convention)
    masks = tf.cast(masks, tf.float32)
    # The shorter way of the data first: rows of the map, then its columns.
    below, above, share, rows = _places(boxes[..., 1::2], height, masks.shape[-2], convention)
    count = masks.shape.rank - 2
    lines = _between(masks, below, above, share, count)  # [..., D, height, n]
    below, above, share, columns = _places(boxes[..., 0::2], width, masks.shape[-1], convention)
    lines = tf.linalg.matrix_transpose(lines)
    pixels = tf.linalg.matrix_transpose(_between(lines, below, above, share, count))
    return (pixels > THRESHOLD) & rows[..., :, None] & columns[..., None, :]


def paste_mask(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, convention: str = "modern"
) -> np.ndarray:
    """`paste_masks` for one object, in NumPy: only the pixels of its box are computed.

    Args:
        mask: `[n, n]` probabilities.
        box: `[4]` xyxy, pixels of the image, in the convention.
        height, width: of the image, pixels.
        convention: "modern" or "mmdet1".

    Returns:
        bool `[height, width]`.

    Example:
        >>> paste_mask(np.ones([28, 28]), np.array([1.0, 0.0, 3.0, 2.0]), 3, 4).astype(int)
        array([[0, 1, 1, 0],
               [0, 1, 1, 0],
               [0, 0, 0, 0]])
    """
    check_convention(convention)
    values = np.asarray(mask, np.float32)
    box = np.asarray(box, np.float32).astype(np.float64)
    windows = []
    for axis, size in enumerate((height, width)):
        low, high = box[1 - axis], box[3 - axis]
        centres = np.arange(size) + 0.5
        if convention == "mmdet1":
            low, high = np.trunc(low), np.trunc(high)
            high = low + max(high - low, 0) + 1
        inside = np.flatnonzero((centres >= low) & (centres < high))
        cells = values.shape[axis]
        places = (centres[inside] - low) * (cells / max(high - low, 1e-9)) - 0.5
        places = np.clip(places.astype(np.float32), 0, cells - 1)
        below = places.astype(int)
        share = (places - below).reshape([-1, 1] if axis == 0 else [-1])
        first, second = (
            values.take(np.minimum(cell, cells - 1), axis=axis) for cell in (below, below + 1)
        )
        values = first * (1 - share) + second * share
        windows.append(slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0))
    pasted = np.zeros((height, width), bool)
    pasted[tuple(windows)] = values > THRESHOLD
    return pasted


def _places(ends, size, cells, convention):
    """Where the pixels of an axis lie among the cells.

    Args:
        ends: `[..., 2]`, where the boxes begin and end.
        size: pixels of the axis.
        cells: of the map.
        convention: "modern" or "mmdet1".

    Returns:
        The cells before and after each pixel, int32 `[..., size]`, the share of the second of them,
        float32, and which pixels are inside of the box, bool.
    """
    low, high = tf.unstack(tf.cast(ends, tf.float64)[..., None], axis=-2)  # [..., 1]
    centres = tf.cast(tf.range(size), tf.float64) + 0.5
    if convention == "mmdet1":
        low, high = (tf.cast(tf.cast(end, tf.int32), tf.float64) for end in (low, high))
        high = low + tf.maximum(high - low, 0.0) + 1.0
    places = (centres - low) * (cells / tf.maximum(high - low, 1e-9)) - 0.5
    places = tf.clip_by_value(tf.cast(places, tf.float32), 0.0, cells - 1.0)
    below = tf.cast(places, tf.int32)
    share = places - tf.cast(below, tf.float32)
    inside = (centres >= low) & (centres < high)
    return below, tf.minimum(below + 1, cells - 1), share, inside


def _between(maps, below, above, share, batch_dims):
    """Rows of `[..., n, m]` maps interpolated: `[..., size, m]`."""
    first, second = (
        tf.gather(maps, cell, axis=batch_dims, batch_dims=batch_dims) for cell in (below, above)
    )
    share = share[..., None]
    return first * (1 - share) + second * share
