"""The C++ deformable convolution as a differentiable function."""

import tensorflow as tf

from sepc_tf.ops import native


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
    """The second order goes through the portable backward pass, whose operations TF derives."""
    from sepc_tf.ops.deform_conv2d import Geometry, portable_backward

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
    # A graph, because TensorFlow does not derive the loop's arrays in eager mode.
    backward = tf.function(
        lambda *values: portable_backward(values[:-1], values[-1], geometry), autograph=False
    )
    with tf.GradientTape() as tape:
        tape.watch([*arguments, upstream])
        gradients = backward(*arguments, upstream)
    seconds = tape.gradient(
        gradients,
        [*arguments, upstream],
        [by_x, by_offset, by_kernel, by_mask][: len(arguments)],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return seconds[0], seconds[1], seconds[3] if modulated else None, seconds[2], seconds[-1]


_SETTINGS = ("strides", "paddings", "dilations", "groups", "offset_groups", "modulated")
