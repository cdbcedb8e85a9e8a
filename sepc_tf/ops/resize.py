"""Resizing of feature maps to a given size, as PyTorch's `interpolate` does it.

Both forms multiply each spatial axis with an interpolation matrix `[out, in]` built from the
shapes. Against TensorFlow's own resize ops this costs a little in graph mode (a tenth of the 3x3
convolution it follows) and keeps the gradient two matrix products as well; the gradient of the ops
is a hundred times slower under XLA, or not compilable at all.
"""

import tensorflow as tf


def resize_bilinear_align_corners(x, size):
    """Bilinear resize in which the corner pixels of input and output coincide.

    Output row `i` samples the input at `i * (H - 1) / (out_H - 1)` (at 0 when `out_H` is 1),
    columns likewise; the value is the linear interpolation of the neighbours.

    Args:
        x: `[N, H, W, C]` float tensor, any H and W (may be unknown until run time).
        size: `(out_H, out_W)`, integers or int32 scalar tensors.

    Returns:
        `[N, out_H, out_W, C]`, the dtype of `x`. Differentiable with respect to `x`.

    Example:
        >>> resize_bilinear_align_corners(tf.reshape([0.0, 1.0], [1, 1, 2, 1]), (1, 3))[0, 0, :, 0]
        <tf.Tensor: shape=(3,), dtype=float32, numpy=array([0. , 0.5, 1. ], dtype=float32)>

    Source: SEPC paper, section 3 (top-down term of PConv); PyTorch `upsample_bilinear`.
    """
    return _interpolate(x, size, _linear_weights)


def resize_bilinear(x, size):
    """Bilinear resize in which the outer borders of input and output coincide.

    Output row `i` samples the input at `(i + 0.5) * H / out_H - 0.5`, held within the first and the
    last row; columns likewise; the value is the linear interpolation of the neighbours.

    Args:
        x: `[N, H, W, C]` float tensor, any H and W (may be unknown until run time).
        size: `(out_H, out_W)`, integers or int32 scalar tensors.

    Returns:
        `[N, out_H, out_W, C]`, the dtype of `x`. Differentiable with respect to `x`.

    Example:
        >>> resize_bilinear(tf.reshape([0.0, 1.0], [1, 1, 2, 1]), (1, 4))[0, 0, :, 0]
        <tf.Tensor: shape=(4,), dtype=float32, numpy=array([0.  , 0.25, 0.75, 1.  ], dtype=float32)>

    Source: PyTorch `interpolate(mode="bilinear", align_corners=False)`, as used by HRFPN.
    """
    return _interpolate(x, size, _centred_linear_weights)


def resize_nearest(x, size):
    """Nearest-neighbour resize: output row `i` is input row `floor(i * H / out_H)`.

    The floor is that of the float32 product of `i` and `H / out_H`, as in PyTorch, which may fall
    just short of a whole number (2 rows to 82: row 41 is row 0). From one level of a pyramid to the
    next, where `out_H` is `2 H` or `2 H - 1`, it never does up to H = 2000.

    Args:
        x: `[N, H, W, C]` float tensor, any H and W.
        size: `(out_H, out_W)`, integers or int32 scalar tensors.

    Returns:
        `[N, out_H, out_W, C]`, the dtype of `x`. Differentiable with respect to `x`.

    Example:
        >>> resize_nearest(tf.reshape([0.0, 1.0], [1, 1, 2, 1]), (1, 3))[0, 0, :, 0]
        <tf.Tensor: shape=(3,), dtype=float32, numpy=array([0., 0., 1.], dtype=float32)>

    Source: PyTorch `interpolate(mode="nearest")`, as used by mmdetection's FPN.
    """
    return _interpolate(x, size, _nearest_weights)


def _interpolate(x, size, weights):
    out_height, out_width = size
    shape = tf.shape(x)
    batch, height, width, channels = shape[0], shape[1], shape[2], shape[3]
    precision = tf.float64 if x.dtype == tf.float64 else tf.float32
    rows = tf.cast(weights(height, out_height, precision), x.dtype)
    columns = tf.cast(weights(width, out_width, precision), x.dtype)
    # Columns first: the small products run on the small map, rows are one large product an image.
    y = tf.matmul(columns, tf.reshape(x, [batch * height, width, channels]))
    y = tf.matmul(rows, tf.reshape(y, [batch, height, out_width * channels]))
    y = tf.reshape(y, [batch, out_height, out_width, channels])
    static = [n if isinstance(n, int) else None for n in (out_height, out_width)]
    return tf.ensure_shape(y, [x.shape[0], *static, x.shape[-1]])


def _linear_weights(size, out_size, dtype):
    """`[out_size, size]` matrix; each row holds the two weights of linear interpolation."""
    size, out_size = tf.cast(size, dtype), tf.cast(out_size, dtype)
    positions = tf.range(out_size) * ((size - 1.0) / tf.maximum(out_size - 1.0, 1.0))
    return tf.nn.relu(1.0 - tf.abs(positions[:, None] - tf.range(size)[None, :]))


def _centred_linear_weights(size, out_size, dtype):
    """As `_linear_weights`, of positions between the centres of pixels."""
    size, out_size = tf.cast(size, dtype), tf.cast(out_size, dtype)
    positions = (tf.range(out_size) + 0.5) * (size / out_size) - 0.5
    positions = tf.clip_by_value(positions, 0.0, size - 1.0)
    return tf.nn.relu(1.0 - tf.abs(positions[:, None] - tf.range(size)[None, :]))


def _nearest_weights(size, out_size, dtype):
    """`[out_size, size]` matrix with a single one in each row."""
    # The source row is found in float32, so that rounding agrees with PyTorch's; of float64 maps
    # too, so that they are resized as float32 ones.
    size, out_size = tf.cast(size, tf.float32), tf.cast(out_size, tf.float32)
    sources = tf.minimum(tf.floor(tf.range(out_size) * (size / out_size)), size - 1.0)
    return tf.cast(tf.equal(sources[:, None], tf.range(size)[None, :]), dtype)
