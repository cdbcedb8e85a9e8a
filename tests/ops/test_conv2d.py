import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.conv2d import conv2d, conv2d_output_shape


def convolution_by_definition(x, kernel, strides, padding, groups):
    x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    side, _, channels, filters = kernel.shape
    rows, columns = ((n - side) // strides + 1 for n in x.shape[1:3])
    y = np.zeros([len(x), rows, columns, filters])
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * strides : i * strides + side, j * strides : j * strides + side]
            for out in range(filters):
                group = out // (filters // groups)
                part = window[..., group * channels : (group + 1) * channels]
                y[:, i, j, out] = (part * kernel[..., out]).sum(axis=(1, 2, 3))
    return y


SETTINGS = [
    # side, strides, padding, groups
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (3, 1, 0, 1),
    (7, 2, 3, 1),
    (1, 2, 0, 1),
    (3, 1, 1, 4),
    (3, 2, 1, 2),
]


@pytest.mark.parametrize("height", [8, 9])
@pytest.mark.parametrize(("side", "strides", "padding", "groups"), SETTINGS)
def test_values_and_shape(side, strides, padding, groups, height):
    rng = np.random.default_rng(0)
    x = rng.standard_normal([2, height, 10, 8]).astype(np.float32)
    kernel = rng.standard_normal([side, side, 8 // groups, 12]).astype(np.float32)
    y = conv2d(tf.constant(x), kernel, strides=strides, padding=padding, groups=groups)
    expected = convolution_by_definition(x, kernel, strides, padding, groups)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    assert tuple(y.shape) == conv2d_output_shape(x.shape, 12, side, strides, padding)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("channels", "groups", "strides"), [(8, 4, 1), (64, 8, 2), (96, 2, 1)])
def test_grouped_gradients_equal_those_of_separate_convolutions(
    channels, groups, strides, compiled
):
    rng = np.random.default_rng(1)
    x = tf.constant(rng.standard_normal([1, 5, 6, channels]).astype(np.float32))
    kernel = tf.constant(
        rng.standard_normal([3, 3, channels // groups, 2 * channels]).astype(np.float32)
    )

    def separate(x, kernel):
        pairs = zip(tf.split(x, groups, axis=-1), tf.split(kernel, groups, axis=-1))
        return tf.concat([conv2d(a, b, strides=strides, padding=1) for a, b in pairs], axis=-1)

    def together(x, kernel):
        return conv2d(x, kernel, strides=strides, padding=1, groups=groups)

    cotangent = tf.constant(rng.standard_normal(separate(x, kernel).shape).astype(np.float32))

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = function(x, kernel)
        return tape.gradient(y, [x, kernel], cotangent)

    got = tf.function(lambda: gradients(together), jit_compile=compiled)()
    for a, b in zip(got, gradients(separate)):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match=r"groups \* kernel.shape\[2\] = 2 \* 4 = 8 .* got 6"):
        conv2d(tf.zeros([1, 4, 4, 6]), tf.zeros([3, 3, 4, 8]), groups=2)


def test_grouped_convolution_before_a_norm_where_onednn_is_off():
    # TensorFlow decides when it is imported; only then does it merge the two.
    code = """
import numpy as np, tensorflow as tf
from sepc_tf.ops.conv2d import conv2d
rng = np.random.default_rng(0)
x, kernel = (rng.standard_normal(s).astype("float32") for s in ([1, 5, 6, 8], [3, 3, 2, 8]))
def run(x):
    y = conv2d(x, kernel, padding=1, groups=4)
    ones = tf.ones([8])
    return tf.nn.relu(tf.raw_ops.FusedBatchNormV3(
        x=y, scale=ones, offset=ones, mean=ones, variance=ones, epsilon=1e-5, is_training=False).y)
np.testing.assert_allclose(tf.function(run)(x), run(tf.constant(x)), atol=1e-5)
"""
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
