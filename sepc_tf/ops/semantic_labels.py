"""Labels of the cells of a semantic branch: of maps with a label for each pixel, or of masks."""

from __future__ import annotations

import tensorflow as tf

from sepc_tf.ops.bitmaps import NO_MASK, read_bitmaps
from sepc_tf.ops.boxes import check_convention

UNKNOWN = 255  # the label of what is not learnt from


def labels_of_maps(
    maps: tf.Tensor, stride: int, size: tf.Tensor, convention: str = "modern"
) -> tf.Tensor:
    """A label for each cell, from maps with one for each pixel.

    - "modern": the label of the pixel in the middle of the cell, at `stride i + stride // 2`.
    - "mmdet1": that of its first pixel, at `stride i`: OpenCV's `INTER_NEAREST`.

    Args:
        maps: `[B, H, W]`, labels of the pixels of padded images, `UNKNOWN` for none.
        stride: of the cells, in pixels.
        size: int32 `[2]`, rows and columns of cells.
        convention: "modern" or "mmdet1".

    Returns:
        int32 `[B, *size]`; `UNKNOWN` where the pixel is past the map.

    Example:
        >>> maps = tf.reshape(tf.range(16), [1, 4, 4])
        >>> labels_of_maps(maps, 2, tf.constant([2, 2]))[0].numpy()
        array([[ 5,  7],
               [13, 15]], dtype=int32)
        >>> labels_of_maps(maps, 2, tf.constant([2, 2]), "mmdet1")[0].numpy()
        array([[ 0,  2],
               [ 8, 10]], dtype=int32)
    """
    check_convention(convention)
    first = stride // 2 if convention == "modern" else 0
    known = True
    for axis in (1, 2):
        places = first + stride * tf.range(size[axis - 1])
        last = tf.shape(maps)[axis] - 1
        inside = places <= last
        maps = tf.gather(maps, tf.minimum(places, last), axis=axis)
        known &= inside[:, None] if axis == 1 else inside
    return tf.where(known, tf.cast(maps, tf.int32), UNKNOWN)


def labels_of_masks(batch: dict, stride: int, size: tf.Tensor) -> tf.Tensor:
    """A semantic map of instance masks: 0 is background, class c has the label c + 1.

    A cell has the label of the mask at the pixel in its middle, that of the smallest box where
    there are several. Cells outside the image, and those inside the box of an object without a
    mask that no mask covers, are `UNKNOWN`.

    Args:
        batch: with `labels`, `boxes`, `image_sizes` and the masks, see `sepc_tf.ops.bitmaps`.
        stride: of the cells, in pixels.
        size: int32 `[2]`, rows and columns of cells.

    Returns:
        `[B, H, W]` int32.
    """
    labels = tf.cast(batch["labels"], tf.int32)
    boxes = tf.cast(batch["boxes"], tf.float32)
    real = labels >= 0
    rows, columns = (stride // 2 + stride * tf.range(size[i]) for i in range(2))
    rows, columns = rows[None, None, :, None], columns[None, None, None]
    objects = tf.broadcast_to(tf.range(tf.shape(labels)[1])[None], tf.shape(labels))
    masks = (batch[name] for name in ("bitmaps", "frames", "offsets"))
    like_objects = [tf.shape(labels)[0], tf.shape(labels)[1], 1, 1]
    covered = read_bitmaps(*masks, objects, rows, columns) > 0
    covered &= tf.reshape(real, like_objects)
    x1, y1, x2, y2 = (tf.reshape(x, like_objects) for x in tf.unstack(boxes, axis=-1))
    y, x = (tf.cast(v, tf.float32) + 0.5 for v in (rows, columns))
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
    vague = inside & tf.reshape(real & (batch["offsets"] == NO_MASK), like_objects)
    areas = tf.where(covered, (x2 - x1) * (y2 - y1), tf.float32.max)
    smallest = tf.argmin(areas, axis=1, output_type=tf.int32)  # [B, H, W]
    own = tf.gather(labels, tf.reshape(smallest, [tf.shape(labels)[0], -1]), batch_dims=1)
    own = tf.reshape(own, tf.shape(smallest)) + 1
    vague = tf.reduce_any(vague, axis=1)
    found = tf.where(tf.reduce_any(covered, axis=1), own, tf.where(vague, UNKNOWN, 0))
    heights, widths = (tf.reshape(v, [-1, 1, 1]) for v in tf.unstack(batch["image_sizes"], axis=1))
    return tf.where((rows[0] < heights) & (columns[0] < widths), found, UNKNOWN)
