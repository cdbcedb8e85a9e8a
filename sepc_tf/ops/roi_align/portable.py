"""RoIAlign of TensorFlow's own operations.

Some boxes at a time, all pixels that they read are gathered, and weighted along one axis after the
other. The gradient writes to the same pixels with the same weights, so nothing of the gathered is
kept for it. Runs in graph mode and compiles under XLA.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# Numbers that are gathered at a time: 16 MB. The gradient takes more, for each of its rounds copies
# the gradient of the whole pyramid (not under XLA).
FORWARD_NUMBERS = 1 << 22
BACKWARD_NUMBERS = 1 << 24


def run(table: tf.Tensor, rows: tf.Tensor, weights_y: tf.Tensor, weights_x: tf.Tensor) -> tf.Tensor:
    """The weighted sums, differentiable with respect to `table`.

    Args:
        table: `[P, C]` pixels.
        rows, weights_y, weights_x: as `geometry.neighbours` gives them; float32 or float64.

    Returns:
        `[N, S, S, C]` in the type of the weights.
    """

    @tf.custom_gradient
    def portable_roi_align(table):
        def gradient(upstream):
            return backward(table, rows, weights_y, weights_x, upstream)

        return forward(table, rows, weights_y, weights_x), gradient

    return portable_roi_align(table)


def forward(table, rows, weights_y, weights_x):
    """The output; see `run`."""
    dtype = weights_y.dtype
    _, size, taps, _, _ = rows.shape
    channels = table.shape[-1]

    def pool(blocks, i, outputs):
        values = tf.gather(table, tf.reshape(blocks[0][i], [-1]))
        values = tf.reshape(tf.cast(values, dtype), [-1, size, taps, size * taps, channels])
        values = tf.reduce_sum(values * blocks[1][i][..., None, None], axis=2)
        values = tf.reshape(values, [-1, size, size, taps, channels])
        values = tf.reduce_sum(values * blocks[2][i][:, None, ..., None], axis=3)
        return outputs.write(i, values)

    def outputs_of(count):
        return tf.TensorArray(dtype, count)

    outputs = _by_blocks(pool, outputs_of, [rows, weights_y, weights_x], channels, FORWARD_NUMBERS)
    outputs = tf.reshape(outputs.stack(), [-1, size, size, channels])
    return outputs[: tf.shape(rows)[0]]


def backward(table, rows, weights_y, weights_x, upstream):
    """The gradient by `table`, of its shape and type; `upstream` is `[N, S, S, C]`."""
    channels = table.shape[-1]

    def spread(blocks, i, gradient):
        values = blocks[3][i][:, :, None, :, None]
        values = values * blocks[1][i][:, :, :, None, None, None]
        values = values * blocks[2][i][:, None, None, :, :, None]
        where = tf.reshape(blocks[0][i], [-1, 1])
        return tf.tensor_scatter_nd_add(gradient, where, tf.reshape(values, [-1, channels]))

    def nothing(count):
        return tf.zeros(tf.shape(table), weights_y.dtype)

    inputs = [rows, weights_y, weights_x, upstream]
    gradient = _by_blocks(spread, nothing, inputs, channels, BACKWARD_NUMBERS)
    return tf.ensure_shape(tf.cast(gradient, table.dtype), table.shape)


def _by_blocks(
    step: Callable, initial: Callable, values: list[tf.Tensor], channels: int, numbers: int
):
    """`state = step(blocks, i, state)` for every block i of the boxes, one after the other.

    Args:
        step: function of the values cut in blocks `[blocks, boxes, ...]`, an index, and a state.
        initial: function of the number of blocks that returns the first state.
        values: `[N, ...]` each; the first are the rows. Padded with zeros (of weight zero).
        channels: numbers of a pixel.
        numbers: most numbers that a block gathers.

    Returns:
        The last state.
    """
    _, size, taps, _, _ = values[0].shape
    largest = max(1, numbers // (channels * (size * taps) ** 2))
    boxes = values[0].shape[0]
    if boxes is None:
        boxes = tf.shape(values[0])[0]
        count = tf.maximum(1, (boxes + largest - 1) // largest)
    else:
        count = max(1, -(-boxes // largest))
    block = (boxes + count - 1) // count
    blocks = []
    for value in values:
        rest = value.shape[1:]
        padding = [[0, count * block - boxes]] + [[0, 0]] * len(rest)
        blocks.append(tf.reshape(tf.pad(value, padding), [count, block, *rest]))
    return tf.while_loop(
        lambda i, _: i < count,
        lambda i, state: (i + 1, step(blocks, i, state)),
        (tf.constant(0), initial(count)),
        parallel_iterations=1,
        maximum_iterations=count,
    )[1]
