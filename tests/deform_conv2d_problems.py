"""Small deformable convolutions that the tests of its forms share."""

import numpy as np
import tensorflow as tf

from sepc_tf.ops.deform_conv2d import deform_conv2d


def arguments(dtype="float64", modulated=True, seed=0):
    """x [2, 5, 6, 4], offsets of 2 groups, kernel of 2 groups, mask: strides 2, padding 1."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 5, 6, 4))
    # Away from integer positions, where the derivative jumps.
    offset = np.round(rng.uniform(-3, 3, (2, 3, 3, 36))) + rng.uniform(0.1, 0.9, (2, 3, 3, 36))
    kernel = rng.standard_normal((3, 3, 2, 6))
    mask = rng.uniform(0, 1, (2, 3, 3, 18))
    values = [x, offset, kernel, mask] if modulated else [x, offset, kernel]
    return [tf.constant(value, dtype) for value in values]


def convolve(x, offset, kernel, mask=None, implementation="auto"):
    return deform_conv2d(
        x,
        offset,
        kernel,
        mask=mask,
        strides=2,
        padding=1,
        groups=2,
        offset_groups=2,
        implementation=implementation,
    )


def first_gradients(values, cotangent, implementation):
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = convolve(*values, implementation=implementation)
    return tape.gradient(y, values, cotangent)


def small(dtype):
    """A problem small enough for second derivatives: x [1, 3, 3, 2], one tap, mask."""
    rng = np.random.default_rng(2)
    shapes = [(1, 3, 3, 2), (1, 3, 3, 2), (1, 1, 2, 2), (1, 3, 3, 1)]
    values = [rng.uniform(0.1, 0.9, shape) for shape in shapes]
    return [tf.constant(value, dtype) for value in values]


def squared_gradients(x, offset, kernel, mask, implementation):
    """A scalar made of first derivatives, so that its gradient holds second ones."""
    values = [x, offset, kernel, mask]
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = deform_conv2d(x, offset, kernel, mask=mask, implementation=implementation)
        loss = tf.reduce_sum(y**2)
    return tf.add_n([tf.reduce_sum(g**2) for g in tape.gradient(loss, values)])
