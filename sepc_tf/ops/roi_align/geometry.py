"""Where RoIAlign samples: the level of a box, the positions in its bins, their neighbours."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from sepc_tf.ops.boxes import LAST_PIXEL


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The settings of a call.

    Attributes:
        size: S, bins along each side of a box.
        samples: s, samples along each side of a bin.
        strides: stride of each level in pixels, finest first.
        finest_scale: see `roi_levels`.
        convention: "modern" or "mmdet1".
    """

    size: int
    samples: int
    strides: tuple[int, ...]
    finest_scale: float
    convention: str


def roi_levels(
    boxes: tf.Tensor, num_levels: int, finest_scale: float = 56.0, convention: str = "modern"
) -> tf.Tensor:
    """The level that each box is read from: `floor(log2(sqrt(w h) / finest_scale + 1e-6))`.

    Limited to the levels there are. Boxes without area, and NaN, belong to the finest one.

    Args:
        boxes: `[..., 4]` float xyxy in pixels of the image.
        num_levels: number of levels.
        finest_scale: boxes from twice this side on leave the finest level.
        convention: "modern" or "mmdet1" (widths count the last pixel).

    Returns:
        `[...]` int32, 0 is the finest level.

    Example:
        >>> roi_levels([[0.0, 0.0, 111.0, 112.0], [0.0, 0.0, 112.0, 112.0]], 4).numpy()
        array([0, 1], dtype=int32)

    Source: Feature Pyramid Networks (arXiv 1612.03144), equation 1.
    """
    boxes = tf.convert_to_tensor(boxes)
    sides = boxes[..., 2:] - boxes[..., :2] + LAST_PIXEL[convention]
    sides = tf.maximum(sides, 0.0)
    scale = tf.sqrt(sides[..., 0] * sides[..., 1]) / finest_scale + 1e-6
    # Thresholds, because a float32 logarithm can miss a whole number.
    reached = [tf.cast(scale >= 2.0**level, tf.int32) for level in range(1, num_levels)]
    return tf.add_n(reached) if reached else tf.zeros(tf.shape(scale), tf.int32)


def neighbours(
    boxes: tf.Tensor, present: tf.Tensor, level_sizes: list[tuple], geometry: Geometry
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The pixels that each box reads, and their weights.

    The S bins of an axis hold 2 s neighbours each: two for every sample.

    Args:
        boxes: `[B, R, 4]` xyxy in pixels of the image, in the type of the computation.
        present: `[B, R]` bool; other boxes have weights 0.
        level_sizes: height and width of each level, ints or int32 scalars.
        geometry: the settings.

    Returns:
        rows: `[B * R, S, 2 s, S, 2 s]` int32 (vertical bin, neighbour, horizontal bin, neighbour),
            rows of a table that holds the pixels of all images of the finest level, then those of
            the next level, and so on.
        weights_y, weights_x: `[B * R, S, 2 s]`; their product is the weight of a pixel, the
            average over the samples of a bin included.
    """
    batch, count = tf.shape(boxes)[0], tf.shape(boxes)[1]
    level = roi_levels(boxes, len(geometry.strides), geometry.finest_scale, geometry.convention)
    heights, widths = (tf.stack([size[i] for size in level_sizes]) for i in (0, 1))
    starts = tf.math.cumsum(heights * widths * batch, exclusive=True)
    height, width = tf.gather(heights, level), tf.gather(widths, level)  # [B, R]
    scale = tf.gather(tf.constant([1.0 / s for s in geometry.strides], boxes.dtype), level)
    last = LAST_PIXEL[geometry.convention]
    x1, y1, x2, y2 = (boxes[..., i] + (last if i > 1 else 0.0) for i in range(4))
    column, weights_x = _axis(x1 * scale, x2 * scale, width, geometry)
    row, weights_y = _axis(y1 * scale, y2 * scale, height, geometry)
    weights_y *= tf.cast(present, boxes.dtype)[..., None, None]

    image = tf.range(batch)[:, None] * height * width  # [B, R]
    row = (tf.gather(starts, level) + image)[..., None, None] + row * width[..., None, None]
    rows = row[..., None, None] + column[:, :, None, None]
    inner = [geometry.size, 2 * geometry.samples]
    return (
        tf.reshape(rows, [batch * count, *inner, *inner]),
        tf.reshape(weights_y, [batch * count, *inner]),
        tf.reshape(weights_x, [batch * count, *inner]),
    )


def _axis(start, end, extent, geometry):
    """Positions and weights along one axis: `[B, R, S, 2 s]` int32 and float."""
    if geometry.convention == "modern":
        start, end = start - 0.5, end - 0.5  # pixel i is centred at i + 0.5
        length = end - start
    else:
        length = tf.maximum(end - start, 0.0)
    dtype, samples = start.dtype, geometry.samples
    extent = tf.cast(extent, dtype)[..., None, None]
    side = (length / geometry.size)[..., None, None]
    bins = tf.range(geometry.size, dtype=dtype)[:, None]
    steps = tf.range(samples, dtype=dtype) + 0.5
    position = start[..., None, None] + bins * side + steps * side / samples
    # False for NaN and infinities, which the comparison replaces by a harmless position.
    inside = (position >= -1.0) & (position <= extent)
    position = tf.where(inside, position, tf.zeros_like(position))
    position = tf.clip_by_value(position, 0.0, extent - 1.0)
    low = tf.floor(position)
    fraction = position - low
    high = tf.minimum(low + 1.0, extent - 1.0)
    share = tf.cast(inside, dtype) / samples
    # [B, R, S, s] twice -> [B, R, S, 2 s]
    index = tf.cast(tf.concat([low, high], axis=-1), tf.int32)
    return index, tf.concat([(1.0 - fraction) * share, fraction * share], axis=-1)
