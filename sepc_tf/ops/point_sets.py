"""Point sets, and the boxes they stand for.

The points of a set are stored y first: number 2 k is the y of point k, number 2 k + 1 its x.
"""

from __future__ import annotations

import tensorflow as tf

TRANSFORMS = ("moment", "minmax", "partial_minmax")


def point_set_boxes(
    points: tf.Tensor, transform: str = "moment", log_scale: tf.Tensor | None = None
) -> tf.Tensor:
    """The box of each set of points.

    - "moment": `mean -+ std exp(log_scale)` of the x and of the y, std with n - 1;
    - "minmax": from the smallest to the largest x and y;
    - "partial_minmax": the same of the first four points.

    Where all points fall together, std is 0 and has no gradient.

    Args:
        points: `[..., 2 n]` float32 or float64, y first, n >= 2 (4 for "partial_minmax").
        transform: one of `TRANSFORMS`.
        log_scale: `[2]`, for x and for y, of the type of `points`; of "moment" only.

    Returns:
        `[..., 4]` xyxy, in the units of the points.

    Raises:
        ValueError: an unknown transform, or `log_scale` missing or without use.

    Example:
        >>> corners = tf.constant([0.0, 1.0, 0.0, 3.0, 4.0, 1.0, 4.0, 3.0])  # y, x, y, x, ...
        >>> point_set_boxes(corners, "minmax").numpy()
        array([1., 0., 3., 4.], dtype=float32)

    Source: RepPoints (arXiv 1904.11490), section 3.2.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"transform must be one of {TRANSFORMS}; got {transform!r}")
    if (log_scale is not None) != (transform == "moment"):
        raise ValueError('log_scale must be given with transform "moment", and with no other')
    y, x = points[..., 0::2], points[..., 1::2]
    if transform == "moment":
        centres = tf.stack([tf.reduce_mean(x, axis=-1), tf.reduce_mean(y, axis=-1)], axis=-1)
        half = tf.stack([_standard_deviation(x), _standard_deviation(y)], axis=-1)
        half *= tf.exp(log_scale)
        return tf.concat([centres - half, centres + half], axis=-1)
    if transform == "partial_minmax":
        y, x = y[..., :4], x[..., :4]
    corners = [reduce(a, axis=-1) for reduce in (tf.reduce_min, tf.reduce_max) for a in (x, y)]
    return tf.stack(corners, axis=-1)


def _standard_deviation(values):
    count = values.shape[-1]
    variance = tf.reduce_sum((values - tf.reduce_mean(values, axis=-1, keepdims=True)) ** 2, -1)
    variance /= count - 1
    positive = variance > 0
    # The square root's slope at 0 is infinite, and would make NaN of a gradient of 0.
    return tf.where(positive, tf.sqrt(tf.where(positive, variance, 1.0)), 0.0)


def scale_gradient(x: tf.Tensor, factor: float) -> tf.Tensor:
    """The same values (up to rounding), with a gradient multiplied by `factor`.

    Example:
        >>> x = tf.constant(2.0)
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     y = scale_gradient(x, 0.5)
        >>> float(tape.gradient(y, x))
        0.5
    """
    return tf.stop_gradient(x - factor * x) + factor * x
