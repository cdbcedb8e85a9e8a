"""Convolution with symmetric zero padding and groups, differentiable on CPU and GPU."""

import tensorflow as tf


def conv2d(x, kernel, *, strides=1, padding=0, groups=1):
    """2-D convolution in PyTorch's convention.

    `y[n, i, j] = sum over a, b of x[n, i * strides + a - padding, j * strides + b - padding] .
    kernel[a, b]`, with zeros outside the map. TensorFlow's `SAME` puts the odd pixel of a strided
    convolution at the bottom right; here `padding` pixels go to all four sides.

    Args:
        x: `[N, H, W, C_in]` float tensor.
        kernel: `[k_h, k_w, C_in / groups, C_out]`, the dtype of `x`.
        strides: step in both directions.
        padding: zero pixels added to each of the four sides.
        groups: output channel block `g` sees input channel block `g` only.

    Returns:
        `[N, (H + 2 padding - k_h) // strides + 1, (W + 2 padding - k_w) // strides + 1, C_out]`.

    Raises:
        ValueError: the channels of `x` do not equal `groups` times the kernel's.

    Example:
        >>> x, kernel = tf.ones([1, 5, 5, 4]), tf.ones([3, 3, 2, 8])
        >>> conv2d(x, kernel, strides=2, padding=1, groups=2).shape
        TensorShape([1, 3, 3, 8])
    """
    kernel = tf.convert_to_tensor(kernel)
    height, width, channels = kernel.shape[:3]
    if x.shape[-1] != channels * groups:
        raise ValueError(
            f"x must have groups * kernel.shape[2] = {groups} * {channels} = {channels * groups} "
            f"channels, got {x.shape[-1]}"
        )
    if height == width == 1 and padding == 0 and strides > 1:
        # The same sums. TensorFlow 2.21 on the CPU writes past its memory in the kernel gradient of
        # a strided 1x1 convolution of one image with 4 or 8 channels (oneDNN).
        x, strides = x[:, ::strides, ::strides], 1
    if strides == 1 and 2 * padding == height - 1 == width - 1:
        mode = "SAME"  # the same result without a padded copy of the map
    else:
        mode = "VALID"
        if padding:
            x = tf.pad(x, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    # cuDNN has gradients of grouped convolutions; the CPU kernels do not.
    if groups == 1 or tf.config.list_physical_devices("GPU"):
        return tf.nn.conv2d(x, kernel, strides, mode)
    return _grouped_conv2d_on_cpu(x, kernel, strides, mode, groups)


def _grouped_conv2d_on_cpu(x, kernel, strides, mode, groups):
    """The native forward kernel with a gradient made of dense convolutions."""

    @tf.custom_gradient
    def convolve(x, kernel):
        def gradient(upstream):
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                y = _as_dense_convolutions(x, kernel, strides, mode, groups)
            return tape.gradient(y, [x, kernel], upstream)

        y = tf.nn.conv2d(x, kernel, strides, mode)
        # Where oneDNN is off TensorFlow merges a norm or bias that follows into the convolution, by
        # a kernel without groups, which fails. It does not with an operation in between.
        return tf.ensure_shape(y, y.shape), gradient

    return convolve(x, kernel)


def _as_dense_convolutions(x, kernel, strides, mode, groups):
    """A grouped convolution as few dense ones with block-diagonal kernels.

    Blocks of about 32 channels are the fastest: 64 convolutions of 8 channels are dominated by
    overheads, a single one of 512 spends 63 of 64 multiplications on zeros.
    """
    height, width, channels, filters = kernel.shape
    fitting = [n for n in range(1, groups + 1) if groups % n == 0 and n * channels <= 32]
    merged = max(fitting, default=1)
    blocks = groups // merged
    parts = tf.reshape(kernel, [height, width, channels, blocks, merged, filters // groups])
    # n is the input group within a block, m the output group: zero unless they are the same.
    dense = tf.einsum("hwcbmf,nm->hwncbmf", parts, tf.eye(merged, dtype=kernel.dtype))
    dense = tf.reshape(dense, [height, width, merged * channels, filters])
    pairs = zip(tf.split(x, blocks, axis=-1), tf.split(dense, blocks, axis=-1))
    return tf.concat([tf.nn.conv2d(a, b, strides, mode) for a, b in pairs], axis=-1)


def conv2d_output_shape(input_shape, filters, kernel_size, strides, padding):
    """Shape `(N, H, W, filters)` after `conv2d`; unknown entries stay None."""
    height, width = (
        None if n is None else (n + 2 * padding - kernel_size) // strides + 1
        for n in tuple(input_shape)[1:3]
    )
    return (input_shape[0], height, width, filters)
