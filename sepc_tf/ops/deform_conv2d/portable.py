"""The portable form of the deformable convolution: TensorFlow's own operations, for every device.

Block by block of output pixels, four gathers give the columns (`K * C` numbers a pixel), one matrix
product the output. Runs in graph mode and compiles under XLA. The letters are those of
`geometry.py`.
"""

from __future__ import annotations

import dataclasses
import functools

import tensorflow as tf

from sepc_tf.ops.deform_conv2d.geometry import Geometry, sizes_of, static_output_shape

BLOCK_NUMBERS = 1 << 20  # numbers in the columns of a block


def run(arguments: list[tf.Tensor], geometry: Geometry) -> tf.Tensor:
    """Runs the portable form, with its hand-derived gradient.

    Args:
        arguments: x, offset, kernel and, for DCNv2, mask; float32 or float64.
        geometry: the settings.

    Returns:
        `[N, Ho, Wo, D]`, the type of the arguments.
    """
    return _function(geometry)(*arguments)


@functools.cache
def _function(geometry):
    """A `tf.function` for every geometry.

    So a network that calls it at many places with the same shapes traces its few hundred operations
    (and those of its gradient) once. `sepc_tf.flops` knows the call by the name of the function.
    """

    @tf.custom_gradient
    def portable_deform_conv2d(*arguments):
        def gradient(upstream):
            return portable_backward(arguments, upstream, geometry)

        return portable_forward(arguments, geometry), gradient

    return tf.function(
        portable_deform_conv2d, autograph=False, experimental_attributes={"_noinline": True}
    )


def portable_forward(arguments: list[tf.Tensor], geometry: Geometry) -> tf.Tensor:
    """The output `[N, Ho, Wo, D]`; see `run`. Its automatic gradient would keep every column."""
    x, offset, kernel, *mask = arguments
    sizes = sizes_of(x, geometry)
    rows, weights, _ = _neighbours(offset, sizes, geometry)
    if mask:
        factors = _samples(mask[0], sizes, geometry)
        weights = [weight * factors for weight in weights]
    blocks = _blocks(sizes, geometry)
    rows, weights = [[blocks.split(v) for v in values] for values in (rows, weights)]
    table = tf.reshape(x, [-1, sizes.channels // geometry.offset_groups])
    matrices = _kernel_matrices(kernel, geometry)

    def multiply(block, columns, products):
        columns = _columns(table, rows, weights, block, columns)
        product = tf.matmul(_columns_by_group(columns, blocks, sizes, geometry), matrices)
        products = products.write(block, _side_by_side(product, geometry))
        return block + 1, columns, products

    _, products = blocks.for_each(
        multiply,
        _no_columns(table, blocks, geometry),
        tf.TensorArray(x.dtype, blocks.count),
    )
    out_channels = kernel.shape[-1]
    y = blocks.join(products.stack())
    y = tf.reshape(y, [sizes.batch, sizes.out_height, sizes.out_width, out_channels])
    return tf.ensure_shape(y, static_output_shape(x.shape, out_channels, geometry))


def portable_backward(
    arguments: list[tf.Tensor], upstream: tf.Tensor, geometry: Geometry
) -> list[tf.Tensor]:
    """Gradients by x, offset, kernel (and mask), sampling again instead of keeping columns.

    Args:
        arguments, geometry: as in `run`.
        upstream: `[N, Ho, Wo, D]`, the gradient by the output.

    Returns:
        one tensor for each argument, of its shape.
    """
    x, offset, kernel, *mask = arguments
    sizes = sizes_of(x, geometry)
    rows, plain_weights, slopes = _neighbours(offset, sizes, geometry)
    weights = plain_weights
    if mask:
        factors = _samples(mask[0], sizes, geometry)
        weights = [weight * factors for weight in weights]
        slopes = [[slope * factors for slope in by_axis] for by_axis in slopes]
    blocks = _blocks(sizes, geometry)
    rows, weights = [[blocks.split(v) for v in values] for values in (rows, weights)]
    table = tf.reshape(x, [-1, sizes.channels // geometry.offset_groups])
    upstream = blocks.split(tf.reshape(upstream, [-1, kernel.shape[-1]]))
    matrices = _kernel_matrices(kernel, geometry)

    def differentiate(block, columns, table_gradient, matrix_gradients, dots):
        columns = _columns(table, rows, weights, block, columns)
        upstream_of_block = _split_groups(upstream[block], geometry)
        # By the transposed matrices: one wide product is faster than a tall one.
        matrix_gradients += tf.matmul(
            upstream_of_block,
            _columns_by_group(columns, blocks, sizes, geometry),
            transpose_a=True,
        )
        gradient = tf.matmul(upstream_of_block, matrices, transpose_b=True)
        gradient = _columns_of_groups(gradient, table.shape[-1], blocks, sizes, geometry)
        values = _gathered(table, rows, block)
        dots = dots.write(block, tf.stack([tf.reduce_sum(v * gradient, axis=-1) for v in values]))
        # One scatter per corner: a single one over all corners is many times slower on TF 2.15.
        for row, weight in zip(rows, weights):
            table_gradient = tf.tensor_scatter_nd_add(
                table_gradient,
                tf.reshape(row[block], [-1, 1]),
                gradient * tf.reshape(weight[block], [-1, 1]),
            )
        return block + 1, columns, table_gradient, matrix_gradients, dots

    _, table_gradient, matrix_gradients, dots = blocks.for_each(
        differentiate,
        _no_columns(table, blocks, geometry),
        tf.zeros_like(table),
        tf.zeros_like(tf.linalg.matrix_transpose(matrices)),
        tf.TensorArray(x.dtype, blocks.count),
    )
    samples_of_block = [blocks.count, blocks.size, geometry.taps * geometry.offset_groups]
    dots = [
        blocks.join(tf.reshape(dots_of_corner, samples_of_block))
        for dots_of_corner in tf.unstack(dots.stack(), axis=1)
    ]
    offset_gradient = tf.stack([_sum_of_products(dots, slope) for slope in slopes], axis=-1)
    gradients = [
        tf.reshape(table_gradient, tf.shape(x)),
        tf.reshape(_fields(offset_gradient, geometry), tf.shape(offset)),
        _kernel_of_matrices(matrix_gradients, kernel, geometry),
    ]
    if mask:
        mask_gradient = _sum_of_products(dots, plain_weights)
        gradients.append(tf.reshape(_fields(mask_gradient, geometry), tf.shape(mask[0])))
    return [tf.ensure_shape(g, a.shape) for g, a in zip(gradients, arguments)]


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """The output pixels cut in `count` blocks of `size`, the last one padded with zeros."""

    pixels: object
    count: object
    size: object

    def split(self, values):
        """`[pixels, ...]` -> `[count, size, ...]`."""
        padding = self.count * self.size - self.pixels
        if not (isinstance(padding, int) and padding == 0):
            values = tf.pad(values, [[0, padding]] + [[0, 0]] * (values.shape.rank - 1))
        return tf.reshape(values, [self.count, self.size, *values.shape[1:]])

    def join(self, values):
        """`[count, size, ...]` -> `[pixels, ...]`."""
        values = tf.reshape(values, [self.count * self.size, *values.shape[2:]])
        return values[: self.pixels]

    def for_each(self, body, *values):
        """Runs `block, *values = body(block, *values)` for every block, one after the other.

        A loop and not copies of its body: only one block's intermediate results exist at a time.
        """
        _, *values = tf.while_loop(
            lambda block, *_: block < self.count,
            body,
            (tf.constant(0), *values),
            parallel_iterations=1,
            maximum_iterations=self.count,
        )
        return values


def _blocks(sizes, geometry):
    """Blocks of at most `BLOCK_NUMBERS` numbers, `taps * channels` a pixel."""
    largest = max(1, BLOCK_NUMBERS // (geometry.taps * sizes.channels))
    pixels = sizes.pixels
    if not isinstance(pixels, int):
        count = tf.maximum(1, (pixels + largest - 1) // largest)
        return _Blocks(pixels, count, (pixels + count - 1) // count)
    fewest = max(1, -(-pixels // largest))
    count = next((n for n in range(fewest, 2 * fewest) if pixels % n == 0), fewest)
    return _Blocks(pixels, count, -(-pixels // count))


def _samples(values, sizes, geometry):
    """`[N, Ho, Wo, G * K]` -> `[N * Ho * Wo, K * G]`."""
    groups, taps = geometry.offset_groups, geometry.taps
    if groups > 1:
        values = tf.reshape(values, [sizes.pixels, groups, taps])
        values = tf.transpose(values, [0, 2, 1])
    return tf.reshape(values, [sizes.pixels, taps * groups])


def _fields(values, geometry):
    """`[N * Ho * Wo, K * G, ...]` -> `[N * Ho * Wo, G, K, ...]`, back from `_samples`."""
    rest = values.shape[2:]
    values = tf.reshape(values, [-1, geometry.taps, geometry.offset_groups, *rest])
    return tf.transpose(values, [0, 2, 1, *range(3, 3 + len(rest))])


def _neighbours(offset, sizes, geometry):
    """The four neighbours of every sample.

    Returns:
        rows: four of `[N * Ho * Wo, K * G]` int32, rows of x as a table `[N * H * W * G, C / G]`.
        weights: four of that shape, bilinear weights, 0 for a neighbour or a sample outside.
        slopes: (four, four) of that shape, derivatives of the weights by dy and by dx.
    """
    dtype = offset.dtype
    groups, taps = geometry.offset_groups, geometry.taps
    kernel_h, kernel_w = geometry.kernel_size
    grid_y = (tf.range(sizes.out_height) * geometry.strides[0] - sizes.padding_top)[
        :, tf.newaxis
    ] + tf.repeat(tf.range(kernel_h) * geometry.dilations[0], kernel_w)
    grid_x = (tf.range(sizes.out_width) * geometry.strides[1] - sizes.padding_left)[
        :, tf.newaxis
    ] + tf.tile(tf.range(kernel_w) * geometry.dilations[1], [kernel_h])
    # Everything below is [N, Ho, Wo, K, G].
    shape = [sizes.batch, sizes.out_height, sizes.out_width, taps, groups]
    offset = tf.reshape(offset, [*shape[:3], groups * taps, 2])
    y, x = (tf.reshape(_samples(offset[..., i], sizes, geometry), shape) for i in (0, 1))
    y += tf.cast(grid_y, dtype)[:, tf.newaxis, :, tf.newaxis]
    x += tf.cast(grid_x, dtype)[:, :, tf.newaxis]

    height, width = tf.cast(sizes.height, dtype), tf.cast(sizes.width, dtype)
    # False for NaN and infinities, which the comparison replaces by a harmless position.
    inside = (y > -1.0) & (y < height) & (x > -1.0) & (x < width)
    y = tf.where(inside, y, tf.zeros_like(y))
    x = tf.where(inside, x, tf.zeros_like(x))
    y0, x0 = tf.floor(y), tf.floor(x)
    low_y, low_x = y - y0, x - x0
    y0, x0 = tf.cast(y0, tf.int32), tf.cast(x0, tf.int32)
    inside = tf.cast(inside, dtype)
    top = inside * tf.cast(y0 >= 0, dtype)
    bottom = inside * tf.cast(y0 + 1 < sizes.height, dtype)
    left = tf.cast(x0 >= 0, dtype)
    right = tf.cast(x0 + 1 < sizes.width, dtype)
    weight_y = (top * (1.0 - low_y), bottom * low_y)
    weight_x = (left * (1.0 - low_x), right * low_x)
    slope_y, slope_x = (-top, bottom), (-left, right)

    image = tf.range(sizes.batch)[:, tf.newaxis, tf.newaxis, tf.newaxis, tf.newaxis]
    rows_y = [
        (image * sizes.height + tf.clip_by_value(y0 + step, 0, sizes.height - 1)) * sizes.width
        for step in (0, 1)
    ]
    columns = [tf.clip_by_value(x0 + step, 0, sizes.width - 1) for step in (0, 1)]
    corners = ((0, 0), (0, 1), (1, 0), (1, 1))

    def of_corners(value):
        return [tf.reshape(value(i, j), [sizes.pixels, taps * groups]) for i, j in corners]

    rows = of_corners(lambda i, j: (rows_y[i] + columns[j]) * groups + tf.range(groups))
    weights = of_corners(lambda i, j: weight_y[i] * weight_x[j])
    slopes_y = of_corners(lambda i, j: slope_y[i] * weight_x[j])
    slopes_x = of_corners(lambda i, j: weight_y[i] * slope_x[j])
    return rows, weights, (slopes_y, slopes_x)


def _columns(table, rows, weights, block, previous):
    """The samples of a block, `[size * K * G, C/G]`; `previous` are those of another block.

    A loop of one round computes them, for XLA would else fuse the sampling with the reshaping to a
    matrix into a loop that it cannot vectorise (twice the time). `previous` is only the value
    before the first round: the loop over the blocks carries it, so that the memory is used again.
    """

    def sample(block, _):
        values = _gathered(table, rows, block)
        factors = [tf.reshape(weight[block], [-1, 1]) for weight in weights]
        return block + 1, _sum_of_products(values, factors)

    return tf.while_loop(
        lambda i, _: i <= block,
        sample,
        (block, previous),
        parallel_iterations=1,
        maximum_iterations=1,
    )[1]


def _no_columns(table, blocks, geometry):
    samples = blocks.size * geometry.taps * geometry.offset_groups
    return tf.zeros([samples, table.shape[-1]], table.dtype)


def _gathered(table, rows, block):
    """The four neighbours of the samples of a block, each `[size * K * G, C/G]`.

    Four gathers, because XLA turns a sum of four into one vectorised loop, but not a sum over an
    axis of length four (twice as slow on TF 2.15).
    """
    return [tf.gather(table, tf.reshape(row[block], [-1])) for row in rows]


def _sum_of_products(values, factors):
    """Over the four corners."""
    terms = [value * factor for value, factor in zip(values, factors)]
    return (terms[0] + terms[1]) + (terms[2] + terms[3])


# Matrix products: of plain matrices if `groups` is 1, else of one matrix per group.


def _columns_by_group(columns, blocks, sizes, geometry):
    """`[size * K * G, C/G]` -> `[size, K * C]` or `[groups, size, K * C/groups]`."""
    groups, taps, channels = geometry.groups, geometry.taps, sizes.channels
    if groups == 1:
        return tf.reshape(columns, [blocks.size, taps * channels])
    columns = tf.reshape(columns, [blocks.size, taps, groups, channels // groups])
    columns = tf.transpose(columns, [2, 0, 1, 3])
    return tf.reshape(columns, [groups, blocks.size, taps * channels // groups])


def _columns_of_groups(columns, sample_channels, blocks, sizes, geometry):
    """The inverse of `_columns_by_group`."""
    groups, taps, channels = geometry.groups, geometry.taps, sizes.channels
    if groups > 1:
        columns = tf.reshape(columns, [groups, blocks.size, taps, channels // groups])
        columns = tf.transpose(columns, [1, 2, 0, 3])
    return tf.reshape(columns, [-1, sample_channels])


def _kernel_matrices(kernel, geometry):
    """`[kh, kw, C/groups, D]` -> `[K * C, D]` or `[groups, K * C/groups, D/groups]`."""
    return _split_groups(tf.reshape(kernel, [-1, kernel.shape[3]]), geometry)


def _kernel_of_matrices(matrices, kernel, geometry):
    """`[D, K * C]` or `[groups, D/groups, K * C/groups]` -> the shape of `kernel`."""
    rows = geometry.taps * kernel.shape[2]
    matrices = tf.reshape(matrices, [kernel.shape[3], rows])
    return tf.reshape(tf.transpose(matrices), kernel.shape)


def _split_groups(matrix, geometry):
    """`[R, D]` -> `[groups, R, D/groups]` if there are several."""
    groups = geometry.groups
    if groups == 1:
        return matrix
    matrix = tf.reshape(matrix, [-1, groups, matrix.shape[-1] // groups])
    return tf.transpose(matrix, [1, 0, 2])


def _side_by_side(matrices, geometry):
    """The inverse of `_split_groups`."""
    if geometry.groups == 1:
        return matrices
    channels = geometry.groups * matrices.shape[-1]
    return tf.reshape(tf.transpose(matrices, [1, 0, 2]), [-1, channels])
