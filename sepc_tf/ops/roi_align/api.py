"""The entry point of RoIAlign, and its checks."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from sepc_tf.ops.boxes import check_convention
from sepc_tf.ops.roi_align import portable
from sepc_tf.ops.roi_align.geometry import Geometry, neighbours


def roi_align(
    pyramid: Sequence[tf.Tensor],
    boxes: tf.Tensor,
    present: tf.Tensor | None = None,
    *,
    strides: Sequence[int],
    size: int = 7,
    samples: int = 2,
    finest_scale: float = 56.0,
    convention: str = "modern",
) -> tf.Tensor:
    """Features of a fixed size inside each box, from the level that fits the box.

    A box is cut in S x S bins, a bin holds s x s samples at the centres of its equal parts, and
    gives their mean. A sample is the bilinear interpolation of the map at its position; it counts
    as 0 more than a pixel outside (y < -1, y > H, x alike), and within that pixel it has the value
    at the border.

    - "modern": pixel i of a level of stride t is centred at `(i + 0.5) t`: a box starts at
      `x1 / t - 0.5` and ends at `x2 / t - 0.5` on the map.
    - "mmdet1": a box starts at `x1 / t` and ends at `(x2 + 1) / t`; where that is before its start
      all samples are taken at the start.

    Sums are accumulated in float32 for half-precision maps, positions are float32 (float64 for
    float64 maps). Differentiable once, with respect to the pyramid only; neither the gathered
    pixels nor anything of their size is kept for the gradient.

    Args:
        pyramid: list of L maps `[B, H_l, W_l, C]`, finest first; float16, bfloat16, float32 or
            float64. All sizes but C may be unknown while tracing.
        boxes: `[B, R, 4]` float xyxy in pixels of the image; any values, infinities and NaN too.
        present: `[B, R]` bool, which boxes are real; the others give zeros. None: all.
        strides: of the levels, in pixels.
        size: S.
        samples: s.
        finest_scale: a box of area up to (2 finest_scale)^2 is read from the finest level, of up to
            4 times that from the next, and so on; see `roi_levels`.
        convention: "modern" or "mmdet1".

    Returns:
        `[B, R, S, S, C]` in the type of the maps.

    Raises:
        ValueError: a shape or setting does not fit; the message names it.
        TypeError: maps that are not floating, or of several types.

    Example:
        >>> x = tf.reshape(tf.range(16.0), [1, 4, 4, 1])
        >>> boxes = tf.constant([[[4.0, 4.0, 12.0, 12.0]]])  # the four pixels in the middle
        >>> roi_align([x], boxes, strides=[4], size=2, samples=1)[0, 0, :, :, 0].numpy()
        array([[ 5.,  6.],
               [ 9., 10.]], dtype=float32)

    Source: Mask R-CNN (arXiv 1703.06870), section 3; levels: arXiv 1612.03144, equation 1.
    """
    pyramid = [tf.convert_to_tensor(x) for x in pyramid]
    dtype = _checked_type(pyramid)
    geometry = _checked_geometry(pyramid, size, samples, strides, finest_scale, convention)
    compute_type = tf.float64 if dtype == tf.float64 else tf.float32
    boxes = tf.stop_gradient(tf.cast(boxes, compute_type))
    if boxes.shape.rank != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes: expected shape [batch, boxes, 4], got {boxes.shape}")
    present = tf.fill(tf.shape(boxes)[:2], True) if present is None else tf.cast(present, tf.bool)
    if not present.shape.is_compatible_with(boxes.shape[:2]):
        raise ValueError(f"present: expected shape {boxes.shape[:2]}, got {present.shape}")
    if not pyramid[0].shape[:1].is_compatible_with(boxes.shape[:1]):
        raise ValueError(
            f"boxes: expected a batch of {pyramid[0].shape[0]} as the maps, got {boxes.shape[0]}"
        )
    channels = pyramid[0].shape[-1]
    table = tf.concat([tf.reshape(x, [-1, channels]) for x in pyramid], axis=0)
    around = neighbours(boxes, present, [_size(x) for x in pyramid], geometry)
    # Where all sizes are known XLA must see them: its loops have static shapes.
    number = boxes.shape[:2].num_elements()
    around = [tf.ensure_shape(x, [number, *x.shape[1:]]) for x in around]
    pooled = tf.cast(portable.run(table, *around), dtype)
    shape = tf.shape(boxes)
    pooled = tf.reshape(pooled, [shape[0], shape[1], size, size, channels])
    return tf.ensure_shape(pooled, [*boxes.shape[:2], size, size, channels])


def _checked_type(pyramid):
    types = {x.dtype for x in pyramid}
    if len(types) != 1 or not next(iter(types)).is_floating:
        names = sorted(t.name for t in types)
        raise TypeError(f"pyramid: expected maps of one floating type, got {names}")
    return types.pop()


def _checked_geometry(pyramid, size, samples, strides, finest_scale, convention):
    check_convention(convention)
    if len(strides) != len(pyramid):
        raise ValueError(
            f"strides: expected one for each of {len(pyramid)} maps, got {len(strides)}"
        )
    if size < 1 or samples < 1:
        raise ValueError(f"size and samples must be at least 1; got size={size}, samples={samples}")
    channels = {x.shape[-1] if x.shape.rank == 4 else None for x in pyramid}
    if len(channels) != 1 or None in channels:
        shapes = [tuple(x.shape) for x in pyramid]
        raise ValueError(f"pyramid: expected [B, H, W, C] maps of one known C, got {shapes}")
    return Geometry(size, samples, tuple(strides), finest_scale, convention)


def _size(x):
    dynamic = tf.shape(x)
    return tuple(dynamic[i] if x.shape[i] is None else x.shape[i] for i in (1, 2))
