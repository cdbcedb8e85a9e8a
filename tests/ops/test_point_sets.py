import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.point_sets import TRANSFORMS, point_set_boxes, scale_gradient


def random_points(dtype=np.float64):
    return np.random.default_rng(0).normal(size=(3, 4, 18)).astype(dtype)


def numpy_boxes(points, transform, log_scale):
    y, x = points[..., ::2], points[..., 1::2]
    if transform == "moment":
        half_x, half_y = (a.std(-1, ddof=1) * np.exp(s) for a, s in zip((x, y), log_scale))
        x1, x2 = x.mean(-1) - half_x, x.mean(-1) + half_x
        y1, y2 = y.mean(-1) - half_y, y.mean(-1) + half_y
    else:
        count = 9 if transform == "minmax" else 4
        y, x = y[..., :count], x[..., :count]
        x1, x2, y1, y2 = x.min(-1), x.max(-1), y.min(-1), y.max(-1)
    return np.stack([x1, y1, x2, y2], axis=-1)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_boxes_and_their_gradients(transform):
    points, log_scale = random_points(), np.array([0.3, -0.2])
    weights = np.random.default_rng(1).normal(size=(3, 4, 4))
    moments = tf.constant(log_scale) if transform == "moment" else None
    inputs = [tf.constant(points)] + ([moments] if moments is not None else [])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        boxes = point_set_boxes(inputs[0], transform, moments)
        total = tf.reduce_sum(boxes * weights)
    np.testing.assert_allclose(boxes, numpy_boxes(points, transform, log_scale), rtol=1e-12)

    def value(points, log_scale):
        return np.sum(numpy_boxes(points, transform, log_scale) * weights)

    gradients = tape.gradient(total, inputs)
    step, finite = 1e-6, np.zeros_like(points)
    for index in np.ndindex(points.shape):
        moved = points.copy()
        moved[index] += step
        above = value(moved, log_scale)
        moved[index] -= 2 * step
        finite[index] = (above - value(moved, log_scale)) / (2 * step)
    np.testing.assert_allclose(gradients[0], finite, atol=1e-8)
    if moments is not None:
        for i, unit in enumerate(np.eye(2) * step):
            slope = (value(points, log_scale + unit) - value(points, log_scale - unit)) / (2 * step)
            np.testing.assert_allclose(gradients[1][i], slope, rtol=1e-7)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_points_that_fall_together_have_a_finite_gradient(transform):
    points = tf.ones([2, 18])
    log_scale = tf.zeros([2]) if transform == "moment" else None
    with tf.GradientTape() as tape:
        tape.watch(points)
        boxes = point_set_boxes(points, transform, log_scale)
    np.testing.assert_allclose(boxes, 1.0)
    assert np.isfinite(tape.gradient(boxes, points)).all()


def test_wrong_arguments_are_named():
    points = tf.zeros([1, 18])
    with pytest.raises(ValueError, match=r"transform must be one of .*'mean'"):
        point_set_boxes(points, "mean")
    for transform, log_scale in (("moment", None), ("minmax", tf.zeros([2]))):
        with pytest.raises(ValueError, match="log_scale must be given"):
            point_set_boxes(points, transform, log_scale)


def test_scaled_gradient_leaves_the_values():
    x = tf.constant([1.5, -3.0, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = scale_gradient(x, 0.1) * [1.0, 2.0, 3.0]
    np.testing.assert_allclose(y, [1.5, -6.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(y, x), [0.1, 0.2, 0.3], rtol=1e-6)
