import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.resize import resize_bilinear, resize_bilinear_align_corners, resize_nearest


def aligned(i, size, out_size):
    return i * (size - 1) / (out_size - 1) if out_size > 1 else 0.0


def centred(i, size, out_size):
    return min(max((i + 0.5) * size / out_size - 0.5, 0.0), size - 1)


def bilinear_by_definition(x, size, position):
    """One pixel at a time: the weighted sum of the four neighbours."""
    batch, height, width, channels = x.shape
    y = np.zeros([batch, *size, channels])
    for i in range(size[0]):
        for j in range(size[1]):
            v, u = position(i, height, size[0]), position(j, width, size[1])
            top, left = int(v), int(u)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = v - top, u - left
            y[:, i, j] = (1 - a) * ((1 - b) * x[:, top, left] + b * x[:, top, right]) + a * (
                (1 - b) * x[:, bottom, left] + b * x[:, bottom, right]
            )
    return y


SIZES = [
    ((3, 4), (6, 8)),
    ((5, 7), (9, 14)),
    ((7, 4), (3, 9)),
    ((1, 1), (2, 3)),
    ((4, 5), (1, 1)),
    ((1, 3), (5, 1)),
    ((13, 21), (25, 42)),
]


@pytest.mark.parametrize(("size", "out_size"), SIZES)
def test_bilinear_is_the_definition(size, out_size):
    x = np.random.default_rng(0).standard_normal([2, *size, 3]).astype(np.float32)
    for resize, position in ((resize_bilinear_align_corners, aligned), (resize_bilinear, centred)):
        expected = bilinear_by_definition(x, out_size, position)
        np.testing.assert_allclose(resize(tf.constant(x), out_size), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "out_size"), SIZES)
def test_nearest_is_the_floor_of_the_ratio(size, out_size):
    x = np.random.default_rng(0).standard_normal([2, *size, 3]).astype(np.float32)
    rows, columns = (np.arange(m) * n // m for n, m in zip(size, out_size))
    y = resize_nearest(tf.constant(x), out_size)
    np.testing.assert_array_equal(y, x[:, rows][:, :, columns])


@pytest.mark.parametrize(("size", "out_size"), SIZES)
def test_bilinear_is_the_definition_in_float64_too(size, out_size):
    x = np.random.default_rng(0).standard_normal([2, *size, 3])
    y = resize_bilinear_align_corners(tf.constant(x), out_size)
    assert y.dtype == tf.float64
    expected = bilinear_by_definition(x, out_size, aligned)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nearest_rounds_as_pytorch_does(dtype):
    # Of torch 2.14 (nearest, both types) where the exact floor is one more.
    for size, out_size, row, source in ((2, 82, 41, 0), (6, 74, 37, 2), (14, 46, 23, 6)):
        assert row * size // out_size == source + 1
        x = tf.reshape(tf.range(size, dtype=dtype), [1, size, 1, 1])
        assert resize_nearest(x, (out_size, 1))[0, row, 0, 0] == source
    for size in (3, 40, 113, 2000):
        for out_size in (2 * size - 1, 2 * size):
            x = tf.reshape(tf.range(size, dtype=dtype), [1, size, 1, 1])
            got = tf.reshape(resize_nearest(x, (out_size, 1)), [-1])
            np.testing.assert_array_equal(got, np.arange(out_size) * size // out_size)


@pytest.mark.parametrize("resize", [resize_bilinear_align_corners, resize_nearest])
def test_gradient_is_the_adjoint(resize):
    # <resize(x), y> = <x, gradient of y>, which holds for a linear map and its adjoint only.
    rng = np.random.default_rng(1)
    x = tf.constant(rng.standard_normal([1, 5, 6, 2]).astype(np.float32))
    cotangent = tf.constant(rng.standard_normal([1, 9, 11, 2]).astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(resize(x, (9, 11)) * cotangent)
    gradient = tape.gradient(value, x)
    np.testing.assert_allclose(tf.reduce_sum(x * gradient), value, rtol=1e-5)
    other = tf.constant(rng.standard_normal([1, 5, 6, 2]).astype(np.float32))
    np.testing.assert_allclose(
        tf.reduce_sum(other * gradient),
        tf.reduce_sum(resize(other, (9, 11)) * cotangent),
        rtol=1e-4,
    )


@pytest.mark.parametrize("resize", [resize_bilinear_align_corners, resize_nearest])
def test_unknown_shapes_and_compilation(resize):
    x = np.random.default_rng(2).standard_normal([2, 4, 3, 2]).astype(np.float32)
    expected = resize(tf.constant(x), (7, 6))
    dynamic = tf.function(
        lambda x, size: resize(x, (size[0], size[1])),
        input_signature=[tf.TensorSpec([None, None, None, 2]), tf.TensorSpec([2], tf.int32)],
    )
    np.testing.assert_allclose(dynamic(x, [7, 6]), expected, atol=1e-6)
    compiled = tf.function(lambda x: resize(x, (7, 6)), jit_compile=True)
    np.testing.assert_allclose(compiled(x), expected, atol=1e-6)


def test_half_precision_keeps_its_type():
    y = resize_bilinear_align_corners(tf.ones([1, 2, 2, 1], tf.bfloat16), (3, 3))
    assert y.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.cast(y, tf.float32), 1.0)
