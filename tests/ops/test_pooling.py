import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.pooling import adaptive_max_pool

X = np.random.default_rng(0).standard_normal((2, 9, 12, 3)).astype(np.float32)


def reference(x, size):
    """In loops, by the definition of the windows."""
    y = np.empty((x.shape[0], *size, x.shape[-1]), x.dtype)
    for i, j in np.ndindex(*size):
        rows, columns = (
            slice(k * n // m, -(-(k + 1) * n // m)) for k, n, m in zip((i, j), x.shape[1:3], size)
        )
        y[:, i, j] = x[:, rows, columns].max((1, 2))
    return y


@pytest.mark.parametrize("size", [(4, 6), (5, 4), (7, 1), (9, 12), (1, 5)])
def test_values(size):
    np.testing.assert_array_equal(adaptive_max_pool(X, size), reference(X, size))


def test_whole_ratios_are_a_max_pooling():
    np.testing.assert_array_equal(
        adaptive_max_pool(X, (3, 3)), tf.nn.max_pool2d(X, (3, 4), (3, 4), "VALID")
    )


@pytest.mark.parametrize("jit", [False, True])
def test_gradients_go_to_the_maxima_for_any_size(jit):
    @tf.function(jit_compile=jit, input_signature=[tf.TensorSpec([None, None, None, 3])] * 2)
    def run(x, target):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = adaptive_max_pool(x, (tf.shape(target)[1], tf.shape(target)[2]))
        return y, tape.gradient(y, x)

    y, gradient = run(X, np.zeros((1, 4, 7, 3), np.float32))
    np.testing.assert_array_equal(y, reference(X, (4, 7)))
    expected = np.zeros_like(X)
    for n, i, j, c in np.ndindex(*y.shape):  # no two elements of X are equal
        expected[n, ..., c] += X[n, ..., c] == y.numpy()[n, i, j, c]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
