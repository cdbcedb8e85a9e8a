"""The portable form: gradients by finite differences, blocks."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from deform_conv2d_problems import arguments, convolve, first_gradients, small, squared_gradients

from sepc_tf.ops.deform_conv2d import deform_conv2d, portable


def test_gradients_equal_finite_differences():
    theory, numeric = tf.test.compute_gradient(tf.function(convolve), arguments(), delta=1e-5)
    for by_theory, by_difference in zip(theory, numeric):
        np.testing.assert_allclose(by_theory, by_difference, rtol=0, atol=1e-7)


def test_second_order_equals_finite_differences():
    function = functools.partial(squared_gradients, implementation="xla")
    theory, numeric = tf.test.compute_gradient(function, small("float64"), delta=1e-6)
    for by_theory, by_difference in zip(theory, numeric):
        np.testing.assert_allclose(by_theory, by_difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pixels_per_block", [1, 3, 4, 11])
def test_the_portable_form_does_not_depend_on_its_blocks(pixels_per_block, monkeypatch):
    monkeypatch.setattr(portable, "BLOCK_NUMBERS", pixels_per_block * 9 * 4)
    portable._function.cache_clear()
    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((1, 1, 11, 4)))  # 11 pixels: blocks with padding
    kernel = tf.constant(rng.standard_normal((3, 3, 4, 2)))
    upstream = rng.standard_normal((1, 1, 11, 2))
    results = []
    for offset in (None, tf.zeros([1, 1, 11, 18], tf.float64)):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            if offset is None:
                y = tf.nn.conv2d(x, kernel, 1, "SAME")
            else:
                y = deform_conv2d(x, offset, kernel, implementation="xla")
        results.append([y, *tape.gradient(y, [x, kernel], upstream)])
    values = arguments()
    cotangent = tf.constant(rng.standard_normal((2, 3, 3, 6)))
    in_small_blocks = first_gradients(values, cotangent, "xla")
    monkeypatch.undo()
    portable._function.cache_clear()
    results[0] += first_gradients(values, cotangent, "xla")
    results[1] += in_small_blocks
    for expected, got in zip(*results):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
