"""What a mask head should predict: the masks of objects inside boxes, at a fixed size."""

from __future__ import annotations

import tensorflow as tf

from sepc_tf.ops.bitmaps import read_bitmaps
from sepc_tf.ops.boxes import check_convention, clip_boxes

WEIGHT_BITS = 11  # of OpenCV's resizing of 8-bit images: a weight of 1 is 2^11
SAMPLES = 2  # of a bin along each side, as `roi_align`'s


def mask_targets(
    bitmaps: tf.Tensor,
    frames: tf.Tensor,
    offsets: tf.Tensor,
    objects: tf.Tensor,
    boxes: tf.Tensor,
    image_sizes: tf.Tensor,
    size: int = 28,
    convention: str = "modern",
) -> tf.Tensor:
    """Cuts the masks of objects out at boxes and brings them to S x S.

    - "modern": the mask as a map of stride 1 through `sepc_tf.ops.roi_align`: the mean of 2 x 2
      bilinear samples of each bin, half-pixel centres. 1 where it is at least 0.5.
    - "mmdet1": the box's corners are moved into the image and truncated to whole pixels; the pixels
      between them, both included, are resized as OpenCV resizes 8-bit images of 0 and 1. Its
      weights are rounded to 1 / 2048 and its products floored: a value below a half is 0, one of
      three quarters 1, and one between may be either. At exactly 2 S x 2 S pixels it takes the mean
      of 2 x 2, and a half becomes 1.

    Args:
        bitmaps, frames, offsets: the masks of a batch, see `sepc_tf.ops.bitmaps`.
        objects: `[B, N]` int32, the object whose mask each box is filled with.
        boxes: `[B, N, 4]` float32 xyxy in pixels of the image.
        image_sizes: `[B, 2]` int, height and width: the masks are known (0 or 1) inside.
        size: S.
        convention: "modern" or "mmdet1".

    Returns:
        `[B, N, S, S]` float32 of 0 and 1.

    Example:
        >>> from sepc_tf.ops.bitmaps import pack_masks
        >>> mask = np.zeros((8, 8), bool)
        >>> mask[2:6, 2:4] = True
        >>> masks = [tf.constant(x)[None] for x in pack_masks([mask])]
        >>> box = tf.constant([[[2.0, 2.0, 6.0, 6.0]]])
        >>> mask_targets(*masks, tf.constant([[0]]), box, [[8, 8]], size=2)[0, 0].numpy()
        array([[1., 0.],
               [1., 0.]], dtype=float32)

    Source: Mask R-CNN (arXiv 1703.06870), section 3.
    """
    check_convention(convention)

    def read(rows, columns):
        rows, columns = rows[..., :, None], columns[..., None, :]
        return read_bitmaps(bitmaps, frames, offsets, objects, rows, columns)

    boxes = tf.stop_gradient(boxes)
    if convention == "mmdet1":
        return _resized_8_bit(read, boxes, image_sizes, size)
    return _aligned(read, boxes, image_sizes, size)


def _aligned(read, boxes, image_sizes, size):
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    last = tf.cast(image_sizes, boxes.dtype) - 1.0

    def axis(start, end, last):
        """The pixels before and after each sample, and the share of the one after."""
        steps = (tf.range(SAMPLES * size, dtype=boxes.dtype) + 0.5) / (SAMPLES * size)
        position = start[..., None] + steps * (end - start)[..., None] - 0.5
        position = tf.clip_by_value(position, 0.0, last[:, None, None])
        low = tf.floor(position)
        high = tf.minimum(low + 1.0, last[:, None, None])
        return tf.cast(low, tf.int32), tf.cast(high, tf.int32), position - low

    top, bottom, down = axis(y1, y2, last[:, 0])
    left, right, across = axis(x1, x2, last[:, 1])
    down, across = down[..., :, None], across[..., None, :]

    def along_row(rows):
        before, after = (tf.cast(read(rows, c), boxes.dtype) for c in (left, right))
        return before + (after - before) * across

    upper, lower = along_row(top), along_row(bottom)
    sampled = upper + (lower - upper) * down
    shape = tf.shape(boxes)
    bins = tf.reshape(sampled, [shape[0], shape[1], size, SAMPLES, size, SAMPLES])
    return tf.cast(tf.reduce_mean(bins, axis=(3, 5)) >= 0.5, tf.float32)


def _resized_8_bit(read, boxes, image_sizes, size):
    corners = tf.cast(clip_boxes(boxes, image_sizes, "mmdet1"), tf.int32)
    x1, y1, x2, y2 = tf.unstack(corners, axis=-1)
    widths, heights = tf.maximum(x2 - x1 + 1, 1), tf.maximum(y2 - y1 + 1, 1)

    def axis(number):
        """Of each output the pixel before it, and how far behind that it lies."""
        steps = tf.range(size, dtype=tf.float64) + 0.5
        position = tf.cast(steps * tf.cast(number, tf.float64)[..., None] / size - 0.5, tf.float32)
        low = tf.floor(position)
        return tf.cast(low, tf.int32), position - low

    def weights(fraction):
        one = 2.0**WEIGHT_BITS
        return tuple(tf.cast(tf.round(x * one), tf.int32) for x in (1.0 - fraction, fraction))

    column, fraction = axis(widths)
    last = widths[..., None] - 1
    # Columns beyond the border are moved onto it, rows only read there: their weights stay.
    fraction = tf.where((column < 0) | (column >= last), 0.0, fraction)
    before, after = (x[..., None, :] for x in weights(fraction))
    left = x1[..., None] + tf.clip_by_value(column, 0, last)
    right = x1[..., None] + tf.clip_by_value(column + 1, 0, last)
    row, fraction = axis(heights)
    above, below = (x[..., :, None] for x in weights(fraction))
    last = heights[..., None] - 1
    top = y1[..., None] + tf.clip_by_value(row, 0, last)
    bottom = y1[..., None] + tf.clip_by_value(row + 1, 0, last)
    # Pixels of the four neighbours; [B, N, S, S] int32 from here on.
    pixels = [[tf.cast(read(r, c), tf.int32) for c in (left, right)] for r in (top, bottom)]
    upper, lower = ((p * before + q * after) // 16 for p, q in pixels)
    resized = (above * upper // 65536 + below * lower // 65536 + 2) // 4
    halved = (widths == 2 * size) & (heights == 2 * size)
    mean = (tf.add_n([p for row in pixels for p in row]) + 2) // 4
    return tf.cast(tf.where(halved[..., None, None], mean, resized), tf.float32)
