"""The form for other runtimes: no loops, no inner functions, one gather for each corner.

The letters are those of `geometry.py`. All columns exist at once, `N * Ho * Wo * K * C`
numbers for each corner.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from sepc_tf.ops.deform_conv2d.geometry import Geometry, Sizes, sizes_of


def run(arguments: list[tf.Tensor], geometry: Geometry) -> tf.Tensor:
    """Runs the unrolled form; its gradient is TensorFlow's.

    A map with a border of zeros needs no weights for what lies outside: a sample is moved to the
    border at the farthest, where all its neighbours are zeros.

    Args:
        arguments: x, offset, kernel and, for DCNv2, mask; float32 or float64, of known shapes.
        geometry: the settings.

    Returns:
        `[N, Ho, Wo, D]`, the type of the arguments.
    """
    x, offset, kernel, *mask = arguments
    sizes = sizes_of(x, geometry)
    samples = geometry.taps * geometry.offset_groups
    grid_y, grid_x = _grid(sizes, geometry)
    y, x_ = tf.split(_by_tap(offset, 2, sizes, geometry), 2, axis=1)
    # One row of zeros before the map and two behind it: position -1 is row 0.
    y = tf.clip_by_value(y + grid_y.astype(offset.dtype.name) + 1, 0, sizes.height + 1)
    x_ = tf.clip_by_value(x_ + grid_x.astype(offset.dtype.name) + 1, 0, sizes.width + 1)
    y0, x0 = tf.floor(y), tf.floor(x_)
    low_y, low_x = y - y0, x_ - x0
    high_y, high_x = 1.0 - low_y, 1.0 - low_x
    weights = [high_y * high_x, high_y * low_x, low_y * high_x, low_y * low_x]
    if mask:
        factors = _by_tap(mask[0], 1, sizes, geometry)
        weights = [weight * factors for weight in weights]

    height, width, groups = sizes.height + 3, sizes.width + 3, geometry.offset_groups
    table = tf.pad(x, [[0, 0], [1, 2], [1, 2], [0, 0]])
    table = tf.reshape(table, [sizes.batch * height * width * groups, sizes.channels // groups])
    first = tf.cast(y0, tf.int32) * (width * groups) + tf.cast(x0, tf.int32) * groups
    first += _first_rows(sizes, geometry, height * width)
    columns = 0.0
    for step, weight in zip((0, 1, width, width + 1), weights):
        rows = tf.reshape(first + step * groups, [sizes.pixels * samples])
        columns += tf.gather(table, rows) * tf.reshape(weight, [sizes.pixels * samples, 1])
    y = _product(columns, kernel, sizes, geometry)
    return tf.reshape(y, [sizes.batch, sizes.out_height, sizes.out_width, kernel.shape[3]])


def obstacle(dtype: tf.DType, known_shapes: bool) -> str | None:
    """Why a call cannot be computed by this form."""
    return None if known_shapes else "it needs shapes that are known while tracing"


def _grid(sizes: Sizes, geometry: Geometry):
    """Rows and columns of the taps without offsets, both `[N * Ho * Wo, 1, K * G]`."""
    kernel_h, kernel_w = geometry.kernel_size
    y = np.arange(sizes.out_height) * geometry.strides[0] - sizes.padding_top
    x = np.arange(sizes.out_width) * geometry.strides[1] - sizes.padding_left
    y = y[:, None] + np.repeat(np.arange(kernel_h) * geometry.dilations[0], kernel_w)
    x = x[:, None] + np.tile(np.arange(kernel_w) * geometry.dilations[1], kernel_h)
    shape = (sizes.batch, sizes.out_height, sizes.out_width, geometry.taps)
    return tuple(
        np.repeat(
            np.broadcast_to(grid, shape).reshape(-1, 1, geometry.taps), geometry.offset_groups, 2
        )
        for grid in (y[:, None], x[None])
    )


def _first_rows(sizes: Sizes, geometry: Geometry, pixels: int):
    """The table's row of the first pixel of every sample's image and group."""
    image = np.repeat(np.arange(sizes.batch), sizes.out_height * sizes.out_width)
    group = np.tile(np.arange(geometry.offset_groups), geometry.taps)
    rows = image[:, None] * pixels * geometry.offset_groups + group
    return rows.astype(np.int32)[:, None]


def _by_tap(field: tf.Tensor, width: int, sizes: Sizes, geometry: Geometry) -> tf.Tensor:
    """`[N, Ho, Wo, G * K * width]` -> `[N * Ho * Wo, width, K * G]`."""
    groups, taps = geometry.offset_groups, geometry.taps
    if groups == 1:
        field = tf.reshape(field, [sizes.pixels, taps, width])
        return tf.transpose(field, [0, 2, 1])
    field = tf.reshape(field, [sizes.pixels, groups, taps, width])
    return tf.reshape(tf.transpose(field, [0, 3, 2, 1]), [sizes.pixels, width, taps * groups])


def _product(columns, kernel, sizes, geometry):
    """`[N * Ho * Wo * K * G, C / G]` columns times the kernel: `[N * Ho * Wo, D]`."""
    groups, taps, filters = geometry.groups, geometry.taps, kernel.shape[3]
    if groups == 1:
        columns = tf.reshape(columns, [sizes.pixels, taps * sizes.channels])
        return tf.matmul(columns, tf.reshape(kernel, [-1, filters]))
    rows = taps * sizes.channels // groups
    columns = tf.reshape(columns, [sizes.pixels, taps, groups, sizes.channels // groups])
    columns = tf.reshape(tf.transpose(columns, [2, 0, 1, 3]), [groups, sizes.pixels, rows])
    kernel = tf.transpose(tf.reshape(kernel, [rows, groups, filters // groups]), [1, 0, 2])
    return tf.reshape(tf.transpose(tf.matmul(columns, kernel), [1, 0, 2]), [sizes.pixels, filters])
