"""The native form against the portable one, and its own checks."""

import numpy as np
import pytest
import tensorflow as tf
from deform_conv2d_problems import arguments, convolve, first_gradients, small, squared_gradients

from sepc_tf.ops import native


def test_native_equals_portable_with_groups_and_mask(native_or_skip):
    values = arguments("float32")
    cotangent = tf.constant(np.random.default_rng(1).standard_normal((2, 3, 3, 6)), "float32")
    want = [
        convolve(*values, implementation="xla"),
        *first_gradients(values, cotangent, "xla"),
    ]
    got = [
        convolve(*values, implementation="native"),
        *first_gradients(values, cotangent, "native"),
    ]
    for native_value, portable_value in zip(got, want):
        np.testing.assert_allclose(native_value, portable_value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_second_order_of_the_native_form(native_or_skip, compiled):
    values = small("float32")

    def gradient(implementation):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = squared_gradients(*values, implementation=implementation)
        return tape.gradient(loss, values)

    of_native = tf.function(lambda: gradient("native"), jit_compile=True) if compiled else None
    for want, got in zip(gradient("xla"), of_native() if compiled else gradient("native")):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_kernel_itself_refuses_what_tracing_could_not_see(native_or_skip):
    with pytest.raises(tf.errors.InvalidArgumentError, match="offset: expected shape"):
        native.load().sepc_deform_conv2d(
            x=tf.zeros([1, 5, 6, 4]),
            offset=tf.zeros([1, 4, 6, 18]),
            mask=tf.zeros([0]),
            kernel=tf.zeros([3, 3, 4, 2]),
            strides=[1, 1],
            paddings=[],
            dilations=[1, 1],
            groups=1,
            offset_groups=1,
            modulated=False,
        )
