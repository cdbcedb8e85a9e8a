"""Deformable convolution (DCNv1 and v2) with hand-derived gradients, for every TensorFlow device.

Letters used for shapes: batch `N`, input map `H x W` with `C` channels, output map `Ho x Wo` with
`D` channels, kernel `kh x kw` with `K = kh * kw` taps, `G` offset groups, of `C / G` channels each.

Two forms compute the same thing. The portable one (`"xla"`) is made of TensorFlow operations: block
by block of output pixels, four gathers give the columns (`K * C` numbers a pixel), one matrix
product the output. It runs in graph mode and compiles under XLA. The native one is a C++ kernel for
the CPU (`sepc_tf/ops/native`).
"""

import contextlib
import contextvars
import dataclasses
import functools

import tensorflow as tf
from tensorflow.python.ops import control_flow_util
from tensorflow.python.saved_model import save_context

from sepc_tf.ops import native
from sepc_tf.ops.native import deform_conv2d as native_form

IMPLEMENTATIONS = ("auto", "xla", "native")
BLOCK_NUMBERS = 1 << 20  # numbers in the columns of a block of the portable form


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The static settings of one deformable convolution; `paddings` is None for TF's SAME."""

    kernel_size: tuple
    strides: tuple
    paddings: tuple | None
    dilations: tuple
    groups: int
    offset_groups: int

    @property
    def taps(self):
        return self.kernel_size[0] * self.kernel_size[1]

    def axis(self, axis, size):
        """Returns (output size, padding before) along axis 0 (height) or 1 (width).

        `size` is an int or an int32 scalar tensor.
        """
        extent = (self.kernel_size[axis] - 1) * self.dilations[axis] + 1
        stride = self.strides[axis]
        if self.paddings is None:
            out = (size + stride - 1) // stride
            total = (out - 1) * stride + extent - size
            total = max(total, 0) if isinstance(total, int) else tf.maximum(total, 0)
            return out, total // 2
        before, after = self.paddings[axis]
        return (size + before + after - extent) // stride + 1, before


def deform_conv2d(
    x,
    offset,
    kernel,
    *,
    mask=None,
    strides=1,
    padding="same",
    dilations=1,
    groups=1,
    offset_groups=1,
    implementation="auto",
):
    """Convolution whose taps are displaced by a field of offsets.

    For output pixel `p`, tap `k` at grid position `g_k` and its offset `o_k(p) = (dy, dx)`:

        y[p] = sum_k mask_k(p) * W_k^T x(p * stride - padding + g_k * dilation + o_k(p))

    where `x(.)` is bilinear: a sample at `y <= -1`, `y >= H`, `x <= -1` or `x >= W` is 0, and a
    single neighbour outside the map counts as 0. At an integer position the derivative is the one
    to the right, `value(floor + 1) - value(floor)`. Samples at NaN or infinite positions are 0 and
    have no gradient.

    Sums are accumulated in float32 for half-precision inputs. Differentiable, also twice.

    Args:
        x: `[N, H, W, C]` features; float16, bfloat16, float32 or float64. `N`, `H` and `W` may be
            unknown while tracing.
        offset: `[N, Ho, Wo, 2 * offset_groups * kh * kw]` displacements in pixels of `x`. Channel
            `2 * (g * kh * kw + i * kw + j)` is dy of tap `(i, j)` for offset group `g`, the next
            one is dx. Any floating type (positions are computed in float32, or in float64 when `x`
            is).
        kernel: `[kh, kw, C / groups, D]`.
        mask: None (DCNv1) or `[N, Ho, Wo, offset_groups * kh * kw]` factors of the samples (DCNv2),
            channel `g * kh * kw + i * kw + j`; used as given, without a sigmoid.
        strides: int or (vertical, horizontal).
        padding: "same" (as `tf.nn.conv2d`), "valid", an int (the same on every side, as PyTorch)
            or ((top, bottom), (left, right)).
        dilations: int or (vertical, horizontal).
        groups: output group `g` sees the input channels `[g C/groups, (g+1) C/groups)`.
        offset_groups: offset group `g` moves the input channels `[g C/G, (g+1) C/G)`.
        implementation: "auto", "xla" or "native"; see `deform_conv2d_implementation`.

    Returns:
        `[N, Ho, Wo, D]`, of the type of `x`. No bias is added.

    Raises:
        ValueError: a shape, rank or setting does not fit; the message names the argument, what was
            expected and what came.
        TypeError: `x` is not floating.
        tf.errors.InvalidArgumentError: sizes unknown while tracing turn out not to fit.

    Example:
        >>> x = tf.random.normal([1, 50, 84, 256])
        >>> kernel = tf.random.normal([3, 3, 256, 256])
        >>> deform_conv2d(x, tf.zeros([1, 50, 84, 18]), kernel).shape
        TensorShape([1, 50, 84, 256])

    Source: Dai et al., Deformable Convolutional Networks (arXiv 1703.06211, section 2.1); Zhu et
    al., Deformable ConvNets v2 (arXiv 1811.11168, section 3.2).
    """
    x, offset, kernel, mask, geometry = _checked(
        x, offset, kernel, mask, strides, padding, dilations, groups, offset_groups
    )
    compute_type = tf.float64 if x.dtype == tf.float64 else tf.float32
    arguments = [
        tf.cast(value, compute_type) for value in (x, offset, kernel, mask) if value is not None
    ]
    known_shapes = all(value.shape.num_elements() for value in arguments)  # and not empty
    chosen = deform_conv2d_implementation(implementation, compute_type, known_shapes)
    if chosen == "native" and _compiling_with_xla():
        y = native_form.deform_conv2d_in_xla(arguments, geometry)
    elif chosen == "native":
        static_shape = _static_output_shape(x.shape, kernel.shape[-1], geometry)
        y = native_form.deform_conv2d(arguments, geometry, static_shape)
    else:
        y = _portable_function(geometry)(*arguments)
    return tf.cast(y, x.dtype)


def deform_conv2d_implementation(implementation="auto", dtype=tf.float32, known_shapes=True):
    """The form `deform_conv2d` takes if it is called here.

    "auto" is native on a machine without accelerators, where the C++ library is (or can be) built,
    for every type but float64, unless the call is being saved in a SavedModel, is within
    `portable_ops`, or is being compiled by XLA with shapes that are not all known while tracing;
    it is the portable form elsewhere. The environment variable `SEPC_TF_NATIVE` decides first: "0"
    never uses the library, "1" makes its absence an error.

    Args:
        implementation: "auto", "xla" or "native".
        dtype: type of the features.
        known_shapes: whether the shapes of all arguments are known while tracing.

    Returns:
        "xla" or "native".

    Raises:
        ValueError: another name, or "native" for a type, a device or a context without it.
        sepc_tf.ops.native.NativeUnavailableError: "native" where the library cannot be built.

    Example:
        >>> deform_conv2d_implementation()
        "native"
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation: expected one of {IMPLEMENTATIONS}, got {implementation!r}"
        )
    if implementation == "xla" or _portable_only.get():
        return "xla"
    obstacle = None
    if tf.as_dtype(dtype) == tf.float64:
        obstacle = "it has no float64 form"
    elif _compiling_with_xla():
        obstacle = _obstacle_in_xla(known_shapes)
    if implementation == "native":
        if obstacle:
            raise ValueError(f'implementation: "native" cannot be used: {obstacle}; use "auto"')
        native.load()
        return "native"
    if obstacle or _saving() or _accelerated() or not native.available():
        return "xla"
    return "native"


_portable_only = contextvars.ContextVar("portable_only", default=False)


@contextlib.contextmanager
def portable_ops():
    """Within this context `deform_conv2d` takes the portable form, whatever is asked for.

    For functions that are traced to be exported: the SavedModel then holds TensorFlow's own
    operations only.

    Example:
        >>> with portable_ops():
        ...     tf.saved_model.save(module, folder, signatures=module.serve.get_concrete_function())
    """
    token = _portable_only.set(True)
    try:
        yield
    finally:
        _portable_only.reset(token)


def _compiling_with_xla():
    """Whether the function being traced, or one around it, is compiled by XLA."""
    graph = tf.compat.v1.get_default_graph()
    if tf.executing_eagerly():
        return False
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def _obstacle_in_xla(known_shapes):
    """Why the function that XLA is compiling cannot call the C++ kernel, or None."""
    if not known_shapes:
        return "XLA compiles the function that is being traced, with shapes not known yet"
    # Logical devices too: those of a remote TPU are not among the visible ones.
    if any(device.device_type != "CPU" for device in tf.config.list_logical_devices()):
        return "XLA compiles the function that is being traced, maybe for an accelerator"
    if native.available() and not native.callable_from_xla():
        return "XLA of this TensorFlow cannot call it"
    return None


def _saving():
    return save_context.in_save_context()


def _accelerated():
    devices = tf.config.get_visible_devices()
    return any(device.device_type not in ("CPU", "XLA_CPU") for device in devices)


@functools.cache
def _portable_function(geometry):
    """The form made of TensorFlow operations, with its hand-derived gradient.

    A `tf.function` of its own, so that a network that calls it at many places with the same shapes
    traces its few hundred operations (and those of its gradient) once.
    """

    @tf.custom_gradient
    def run(*arguments):
        def gradient(upstream):
            return portable_backward(arguments, upstream, geometry)

        return portable_forward(arguments, geometry), gradient

    return tf.function(run, autograph=False, experimental_attributes={"_noinline": True})


def portable_forward(arguments, geometry):
    x, offset, kernel, *mask = arguments
    sizes = _sizes(x, geometry)
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
    return tf.ensure_shape(y, _static_output_shape(x.shape, out_channels, geometry))


def portable_backward(arguments, upstream, geometry):
    """Gradients by x, offset, kernel (and mask), sampling again instead of keeping columns."""
    x, offset, kernel, *mask = arguments
    sizes = _sizes(x, geometry)
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
class _Sizes:
    """Sizes of one call: ints where known while tracing, int32 scalars elsewhere."""

    batch: object
    height: object
    width: object
    channels: int
    out_height: object
    out_width: object
    padding_top: object
    padding_left: object

    @property
    def pixels(self):
        return self.batch * self.out_height * self.out_width


def _sizes(x, geometry):
    dynamic = tf.shape(x)
    batch, height, width = (
        dynamic[axis] if x.shape[axis] is None else x.shape[axis] for axis in range(3)
    )
    out_height, top = geometry.axis(0, height)
    out_width, left = geometry.axis(1, width)
    return _Sizes(batch, height, width, x.shape[3], out_height, out_width, top, left)


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


def _static_output_shape(shape, out_channels, geometry):
    """The output shape for an input of static `shape`, None where it is not known."""
    out = [None if shape[a + 1] is None else geometry.axis(a, shape[a + 1])[0] for a in (0, 1)]
    return [shape[0], *out, out_channels]


def _checked(x, offset, kernel, mask, strides, padding, dilations, groups, offset_groups):
    """Returns the arguments as tensors, with the settings, or raises naming the misfit."""
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        raise TypeError(f"x: expected a floating type, got {x.dtype.name}")
    offset = tf.convert_to_tensor(offset)
    kernel = tf.convert_to_tensor(kernel)
    mask = None if mask is None else tf.convert_to_tensor(mask)
    for name, value in (("x", x), ("offset", offset), ("kernel", kernel), ("mask", mask)):
        if value is None:
            continue
        if not value.dtype.is_floating:
            raise TypeError(f"{name}: expected a floating type, got {value.dtype.name}")
        if value.shape.rank != 4:
            raise ValueError(f"{name}: expected a tensor of rank 4, got shape {value.shape}")
    if not kernel.shape.is_fully_defined() or 0 in kernel.shape:
        raise ValueError(
            f"kernel: expected a known, non-empty [kh, kw, C/groups, D], got {kernel.shape}"
        )
    channels, out_channels = x.shape[3], kernel.shape[3]
    if channels is None:
        raise ValueError(f"x: expected a known number of channels, got shape {x.shape}")
    for name, value in (("groups", groups), ("offset_groups", offset_groups)):
        if not isinstance(value, int) or value < 1 or channels % value:
            raise ValueError(
                f"{name}: expected a positive divisor of the {channels} channels of x, "
                f"got {value!r}"
            )
    if out_channels % groups:
        raise ValueError(
            f"kernel: expected a number of outputs divisible by groups={groups}, got {out_channels}"
        )
    if kernel.shape[2] * groups != channels:
        raise ValueError(
            f"kernel: expected {channels // groups} input channels per group (x has {channels}, "
            f"groups is {groups}), got shape {kernel.shape}"
        )
    geometry = Geometry(
        kernel_size=(kernel.shape[0], kernel.shape[1]),
        strides=_pair("strides", strides),
        paddings=_paddings(padding),
        dilations=_pair("dilations", dilations),
        groups=groups,
        offset_groups=offset_groups,
    )
    offset = _checked_field("offset", offset, x, 2, geometry)
    if mask is not None:
        mask = _checked_field("mask", mask, x, 1, geometry)
    return x, offset, kernel, mask, geometry


def _checked_field(name, field, x, per_tap, geometry):
    """Checks offset or mask against the output grid, while tracing where possible."""
    channels = per_tap * geometry.offset_groups * geometry.taps
    expected = _static_output_shape(x.shape, channels, geometry)
    for axis in (1, 2):
        if expected[axis] is not None and expected[axis] < 1:
            raise ValueError(
                f"x: expected a map at least as large as the dilated kernel of size "
                f"{geometry.kernel_size} with dilations {geometry.dilations} and padding "
                f"{geometry.paddings}, got shape {x.shape}"
            )
    if not field.shape.is_compatible_with(expected):
        raise ValueError(
            f"{name}: expected shape {tuple(expected)} (batch, output height, output width, "
            f"{per_tap} * offset_groups {geometry.offset_groups} * {geometry.taps} taps) for x of "
            f"shape {x.shape}, got {field.shape}"
        )
    if field.shape.is_fully_defined() and None not in expected:
        return field
    sizes = _sizes(x, geometry)
    check = tf.debugging.assert_equal(
        tf.shape(field),
        [sizes.batch, sizes.out_height, sizes.out_width, channels],
        message=f"{name}: expected the shape (batch, output height, output width, channels)",
    )
    with tf.control_dependencies([] if check is None else [check]):
        field = tf.identity(field)
    return tf.ensure_shape(field, field.shape.merge_with(expected))


def _pair(name, value):
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(v, int) and v >= 1 for v in pair)
    ):
        raise ValueError(f"{name}: expected a positive int or a pair of them, got {value!r}")
    return tuple(pair)


def _paddings(padding):
    """Returns ((top, bottom), (left, right)), or None for "same"."""
    if isinstance(padding, str):
        name = padding.lower()
        if name == "same":
            return None
        if name == "valid":
            return ((0, 0), (0, 0))
    elif isinstance(padding, int) and padding >= 0:
        return ((padding, padding), (padding, padding))
    elif isinstance(padding, (tuple, list)) and len(padding) == 2:
        sides = [tuple(side) if isinstance(side, (tuple, list)) else () for side in padding]
        if all(len(s) == 2 and all(isinstance(v, int) and v >= 0 for v in s) for s in sides):
            return tuple(sides)
    raise ValueError(
        'padding: expected "same", "valid", an int >= 0 or ((top, bottom), (left, right)), '
        f"got {padding!r}"
    )
