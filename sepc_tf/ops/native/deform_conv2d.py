"""The C++ deformable convolution as a differentiable function, as an operation and inside XLA."""

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from sepc_tf.ops import native

LARGEST_SIDE = 1 << 23  # positions are int32 before a (float) displacement is added


def deform_conv2d(arguments, geometry, static_shape):
    """Runs the C++ kernel.

    Args:
        arguments: x, offset, kernel and, for DCNv2, mask; float32.
        geometry: the settings, as in `sepc_tf.ops.deform_conv2d`.
        static_shape: what is known of the output shape while tracing.

    Returns:
        `[N, Ho, Wo, D]` float32.
    """
    x, offset, kernel, *mask = arguments
    paddings = geometry.paddings
    y = native.load().sepc_deform_conv2d(
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
    return tf.ensure_shape(y, static_shape)


@tf.RegisterGradient("SepcDeformConv2D")
def _gradient(op, upstream):
    x, offset, mask, kernel = op.inputs
    settings = {name: op.get_attr(name) for name in _SETTINGS}
    by_x, by_offset, by_mask, by_kernel = native.load().sepc_deform_conv2d_backward(
        x=x, offset=offset, mask=mask, kernel=kernel, grad_y=upstream, **settings
    )
    return by_x, by_offset, by_mask if settings["modulated"] else None, by_kernel


@tf.RegisterGradient("SepcDeformConv2DBackward")
def _second_gradient(op, by_x, by_offset, by_mask, by_kernel):
    from sepc_tf.ops.deform_conv2d import Geometry

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


def deform_conv2d_in_xla(arguments, geometry):
    """The same kernel, called from a function that XLA compiles for the CPU.

    Args:
        arguments: x, offset, kernel and, for DCNv2, mask; float32, their shapes known.
        geometry: the settings, as in `sepc_tf.ops.deform_conv2d`.

    Returns:
        `[N, Ho, Wo, D]` float32.
    """
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
    def run(*arguments):
        (y,) = xla.custom_call_v2(
            "SepcDeformConv2DForward", arguments, [tf.TensorSpec(out_shape)], numbers
        )
        return y, lambda upstream: differentiate(*arguments, upstream)

    @tf.custom_gradient
    def differentiate(*values):
        *arguments, upstream = values
        gradients = xla.custom_call_v2(
            "SepcDeformConv2DGradient",
            values,
            [tf.TensorSpec(argument.shape) for argument in arguments],
            numbers,
        )
        return gradients, lambda *by: _second_order(arguments, upstream, geometry, by)

    return run(*arguments)


def _second_order(arguments, upstream, geometry, by):
    """Gradients by the arguments and upstream, `by` being those by the first gradients.

    They go through the portable backward pass, whose operations TensorFlow derives.
    """
    from sepc_tf.ops.deform_conv2d import portable_backward

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
