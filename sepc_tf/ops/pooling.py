"""Pooling of feature maps to a given size."""

import tensorflow as tf


def adaptive_max_pool(x, size):
    """Max pooling to a given size: each output pixel is the maximum of a window of the input.

    The window of output row `i` are the input rows from `floor(i * H / out_H)` to before
    `ceil((i + 1) * H / out_H)`, columns likewise: windows overlap where `H / out_H` is no whole
    number, and are those of a max pooling of that side and stride where it is one.

    Args:
        x: `[N, H, W, C]` float tensor, any H and W (may be unknown until run time).
        size: `(out_H, out_W)`, integers or int32 scalar tensors.

    Returns:
        `[N, out_H, out_W, C]`, the dtype of `x`. Differentiable with respect to `x`.

    Example:
        >>> adaptive_max_pool(tf.reshape([3.0, 1.0, 2.0], [1, 3, 1, 1]), (2, 1))[0, :, 0, 0]
        <tf.Tensor: shape=(2,), dtype=float32, numpy=array([3., 2.], dtype=float32)>

    Source: PyTorch `adaptive_max_pool2d`, as used by mmdetection's BFP.
    """
    for axis in (1, 2):
        rows = _windows(tf.shape(x)[axis], size[axis - 1])
        x = tf.reduce_max(tf.gather(x, rows, axis=axis), axis=axis + 1)
    static = [n if isinstance(n, int) else None for n in size]
    return tf.ensure_shape(x, [x.shape[0], *static, x.shape[-1]])


def _windows(size, out_size):
    """`[out_size, widest window]` indices; a narrower window repeats its last one."""
    steps = tf.range(out_size)
    first = steps * size // out_size
    last = ((steps + 1) * size + out_size - 1) // out_size - 1
    widest = tf.reduce_max(last - first) + 1
    return tf.minimum(first[:, None] + tf.range(widest)[None, :], last[:, None])
