"""The native form of the deformable convolution: the C++ kernel, differentiable.

Called as an operation, or from inside a function that XLA compiles for the CPU. The library is
built and loaded by `sepc_tf.ops.native`.
"""

from __future__ import annotations

import tensorflow as tf

from sepc_tf.ops import native as library
from sepc_tf.ops.deform_conv2d import context
from sepc_tf.ops.deform_conv2d.geometry import Geometry, static_output_shape
from sepc_tf.ops.deform_conv2d.portable import portable_backward

LARGEST_SIDE = 1 << 23  # positions are int32 before a (float) displacement is added


def obstacle(dtype: tf.DType, known_shapes: bool) -> str | None:
    """Why this form cannot compute a call that is made here, or None."""
    if tf.as_dtype(dtype) == tf.float64:
        return "it has no float64 form"
    if not context.compiling_with_xla():
        return None
    if not known_shapes:
        return "XLA compiles the function that is being traced, with shapes not known yet"
    # Logical devices too: those of a remote TPU are not among the visible ones.
    if any(device.device_type != "CPU" for device in tf.config.list_logical_devices()):
        return "XLA compiles the function that is being traced, maybe for an accelerator"
    if library.available() and not library.callable_from_xla():
        return "XLA of this TensorFlow cannot call it"
    return None


def preferred() -> bool:
    """Whether "auto" takes this form: not for accelerators nor SavedModels, nor without library."""
    return not context.saving() and not context.accelerated() and library.available()


def require() -> None:
    """Raises `sepc_tf.ops.native.NativeUnavailableError` where the library cannot be had."""
    library.load()


def run(arguments: list[tf.Tensor], geometry: Geometry) -> tf.Tensor:
    """Runs the C++ kernel.

    Args:
        arguments: x, offset, kernel and, for DCNv2, mask; float32. Under XLA their shapes are
            known.
        geometry: the settings.

    Returns:
        `[N, Ho, Wo, D]` float32.
    """
    if context.compiling_with_xla():
        return _custom_call(arguments, geometry)
    return _operation(arguments, geometry)


def _operation(arguments, geometry):
    x, offset, kernel, *mask = arguments
    paddings = geometry.paddings
    y = library.load().sepc_deform_conv2d(
        x=x,
        offset=offset,
        mask=mask[0] if mask else tf.zeros([0]),
        kernel=kernel,
        strides=geometry.strides,
        paddings=[] if paddings is None else [*paddings[0], *paddings[1]],
        dilations=geometry.dilations,
        groups=geometry.groups,
        offset_groups=geometry.offset_groups,
        modulated=bool(mask),
    )
    return tf.ensure_shape(y, static_output_shape(x.shape, kernel.shape[-1], geometry))


@tf.RegisterGradient("SepcDeformConv2D")
def _gradient(op, upstream):
    x, offset, mask, kernel = op.inputs
    settings = {name: op.get_attr(name) for name in _SETTINGS}
    by_x, by_offset, by_mask, by_kernel = library.load().sepc_deform_conv2d_backward(
        x=x, offset=offset, mask=mask, kernel=kernel, grad_y=upstream, **settings
    )
    return by_x, by_offset, by_mask if settings["modulated"] else None, by_kernel


@tf.RegisterGradient("SepcDeformConv2DBackward")
def _second_gradient(op, by_x, by_offset, by_mask, by_kernel):
    x, offset, mask, kernel, upstream = op.inputs
    settings = {name: op.get_attr(name) for name in _SETTINGS}
    paddings = settings["paddings"]
    geometry = Geometry(
        kernel_size=tuple(kernel.shape[:2]),
        strides=tuple(settings["strides"]),
        paddings=(tuple(paddings[:2]), tuple(paddings[2:])) if paddings else None,
        dilations=tuple(settings["dilations"]),
        groups=settings["groups"],
        offset_groups=settings["offset_groups"],
    )
    modulated = settings["modulated"]
    arguments = [x, offset, kernel, mask] if modulated else [x, offset, kernel]
    seconds = _second_order(
        arguments, upstream, geometry, [by_x, by_offset, by_kernel, by_mask][: len(arguments)]
    )
    return seconds[0], seconds[1], seconds[3] if modulated else None, seconds[2], seconds[-1]


_SETTINGS = ("strides", "paddings", "dilations", "groups", "offset_groups", "modulated")


def _custom_call(arguments, geometry):
    """The same kernel, called from a function that XLA compiles for the CPU."""
    x, _, kernel, *mask = arguments
    if max(x.shape[1:3]) > LARGEST_SIDE:
        raise ValueError(f"x: expected sizes up to {LARGEST_SIDE}, got shape {x.shape}")
    (out_height, top), (out_width, left) = (geometry.axis(a, x.shape[a + 1]) for a in (0, 1))
    out_shape = [x.shape[0], out_height, out_width, kernel.shape[3]]
    # The fields of Problem in deform_conv2d_kernel.h, in their order.
    problem = [*x.shape, *out_shape[1:], *geometry.kernel_size, *geometry.strides, top, left]
    problem += [*geometry.dilations, geometry.groups, geometry.offset_groups]
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    numbers = " ".join(str(int(number)) for number in [*problem, bool(mask), threads])

    @tf.custom_gradient
    def convolve(*arguments):
        (y,) = context.custom_call_v2(
            "SepcDeformConv2DForward", arguments, [tf.TensorSpec(out_shape)], numbers
        )
        return y, lambda upstream: differentiate(*arguments, upstream)

    @tf.custom_gradient
    def differentiate(*values):
        *arguments, upstream = values
        gradients = context.custom_call_v2(
            "SepcDeformConv2DGradient",
            values,
            [tf.TensorSpec(argument.shape) for argument in arguments],
            numbers,
        )
        return gradients, lambda *by: _second_order(arguments, upstream, geometry, by)

    return convolve(*arguments)


def _second_order(arguments, upstream, geometry, by):
    """Gradients by the arguments and upstream, `by` being those by the first gradients.

    They go through the portable backward pass, whose operations TensorFlow derives.
    """
    # A graph, because TensorFlow does not derive the loop's arrays in eager mode.
    backward = tf.function(
        lambda *values: portable_backward(values[:-1], values[-1], geometry), autograph=False
    )
    values = [*arguments, upstream]
    with tf.GradientTape() as tape:
        tape.watch(values)
        gradients = backward(*values)
    return tape.gradient(
        gradients, values, list(by), unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
