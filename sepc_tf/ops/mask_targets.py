"""What a mask head should predict: the masks of objects inside boxes, at a fixed size."""

from __future__ import annotations

import tensorflow as tf

from sepc_tf.ops.bitmaps import read_bitmaps
from sepc_tf.ops.boxes import check_convention, clip_boxes

WEIGHT_BITS = 11  # of OpenCV's resizing of 8-bit images: a weight of 1 is 2^11


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

    - "modern": 1 where the mask covers at least half of the area of a bin, of S x S equal parts of
      the box. The area is exact: pixel (r, c) is the square from (c, r) to (c + 1, r + 1).
    - "mmdet1": the box's corners are moved into the image and truncated to whole pixels; the pixels
      between them, both included, are resized as OpenCV resizes 8-bit images of 0 and 1. Its
      weights are rounded to 1 / 2048 and its products floored: a value below a half is 0, one of
      three quarters 1, and one between may be either. At exactly 2 S x 2 S pixels it takes the mean
      of 2 x 2, and a half becomes 1.

    Args:
        bitmaps, frames, offsets: the masks of a batch, see `sepc_tf.ops.bitmaps`.
        objects: `[B, N]` int32, the object whose mask each box is filled with.
        boxes: `[B, N, 4]` float32 xyxy in pixels of the image.
        image_sizes: `[B, 2]` int, height and width, which "mmdet1" moves the corners into.
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
    boxes = tf.stop_gradient(boxes)
    if convention == "modern":
        frames, offsets = (tf.gather(x, objects, batch_dims=1) for x in (frames, offsets))
        areas = _covered_areas(bitmaps, frames, offsets, boxes, size)
        sides = boxes[..., 2:] - boxes[..., :2]
        bin_areas = (tf.reduce_prod(sides, axis=-1) / size**2)[..., None, None]
        return tf.cast((2.0 * areas >= bin_areas) & (bin_areas > 0), tf.float32)

    def read(rows, columns):
        rows, columns = rows[..., :, None], columns[..., None, :]
        return read_bitmaps(bitmaps, frames, offsets, objects, rows, columns)

    return _resized_8_bit(read, boxes, image_sizes, size)


def _covered_areas(bitmaps, frames, offsets, boxes, size):
    """`[B, N, S, S]`, how many square pixels of each bin the mask of its box covers.

    The pixels of a row to the left of any x are known from sums along the flat bitmaps. What is
    left is a sum over the rows that a bin touches, a loop of as many turns as the tallest bin has.
    """
    # before[b, p]: pixels of masks before place p. Only differences inside a row are taken, so a
    # sum that passes the largest integer, and starts again at the smallest, does no harm.
    before = tf.pad(tf.cumsum(tf.cast(bitmaps, tf.int32), axis=1), [[0, 0], [1, 0]])  # [B, L + 1]
    x, y, width, height = tf.unstack(frames, axis=-1)
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)

    def edges(start, end, origin, length):
        """Of the bins, in pixels of the frame and cut to it: `[B, N, S + 1]`."""
        start, end = (v - tf.cast(origin, boxes.dtype) for v in (start, end))
        shares = tf.range(size + 1, dtype=boxes.dtype) / size
        places = start[..., None] + shares * (end - start)[..., None]
        return tf.clip_by_value(places, 0.0, tf.cast(length, boxes.dtype)[..., None])

    def within(places, last):
        return tf.clip_by_value(places, 0, last[..., None, None])

    columns = edges(x1, x2, x, width)[..., None, :]
    left = within(tf.cast(tf.floor(columns), tf.int32), width)
    right = within(left + 1, width)
    share = columns - tf.cast(left, boxes.dtype)  # of the pixel between them that is left of x
    rows = edges(y1, y2, y, height)
    tops, bottoms = rows[..., :-1, None], rows[..., 1:, None]
    first = tf.cast(tf.floor(tops), tf.int32)
    turns = tf.reduce_max(tf.cast(tf.math.ceil(bottoms), tf.int32) - first)

    def add_row(turn, areas):
        row = first + turn  # [B, N, S, 1]
        start = (
            tf.maximum(offsets, 0)[..., None, None]
            + within(row, height - 1) * width[..., None, None]
        )
        counts = [tf.gather(before, start + column, batch_dims=1) for column in (left, right)]
        counts = [tf.cast(n - counts[0][..., :1], boxes.dtype) for n in counts]
        lengths = counts[0] + share * (counts[1] - counts[0])
        lengths = lengths[..., 1:] - lengths[..., :-1]
        row = tf.cast(row, boxes.dtype)
        overlap = tf.minimum(bottoms, row + 1.0) - tf.maximum(tops, row)
        return turn + 1, areas + tf.maximum(overlap, 0.0) * lengths

    shape = tf.concat([tf.shape(boxes)[:2], [size, size]], axis=0)
    areas = tf.zeros(shape, boxes.dtype)
    return tf.while_loop(lambda turn, _: turn < turns, add_row, [0, areas])[1]


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
