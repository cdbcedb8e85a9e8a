"""Losses against numpy in double precision, gradients against finite differences."""

import numpy as np
import tensorflow as tf

from sepc_tf.ops.losses import iou_loss, sigmoid_focal_loss, smooth_l1_loss, tblr_iou_loss


def check_gradient(function, x, wanted_function):
    """Compares value and gradient with a numpy function and its central differences."""
    with tf.GradientTape() as tape:
        variable = tf.constant(x, tf.float32)
        tape.watch(variable)
        values = function(variable)
    np.testing.assert_allclose(values, wanted_function(x), rtol=2e-5, atol=1e-6)
    gradient = tape.gradient(values, variable).numpy()
    wanted = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-5
        wanted[index] = np.sum(wanted_function(x + step) - wanted_function(x - step)) / 2e-5
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_focal_loss():
    logits = np.linspace(-6, 6, 13)
    for label in (0.0, 1.0):

        def wanted(x, label=label):
            p = 1 / (1 + np.exp(-x))
            q, a = (p, 0.25) if label else (1 - p, 0.75)
            return -a * (1 - q) ** 2 * np.log(q)

        check_gradient(
            lambda x, label=label: sigmoid_focal_loss(tf.fill(x.shape, label), x), logits, wanted
        )


def test_focal_loss_is_finite_far_out():
    logits = tf.constant([-200.0, 200.0])
    for label in (0.0, 1.0):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = sigmoid_focal_loss(tf.fill([2], label), logits)
        assert np.isfinite(loss).all() and np.isfinite(tape.gradient(loss, logits)).all()


def test_smooth_l1():
    targets = np.zeros(7)
    check_gradient(
        lambda x: smooth_l1_loss(tf.zeros(7), x, 0.11),
        np.array([-2.0, -0.15, -0.05, 0.01, 0.1, 0.12, 3.0]),
        lambda x: np.where(np.abs(targets - x) < 0.11, 0.5 * x**2 / 0.11, np.abs(x) - 0.055),
    )


def test_tblr_iou():
    targets = np.array([[1.0, 2.0, 3.0, 4.0]] * 4)
    distances = np.array([[1.5, 1.5, 3.5, 3.5], [0.5, 2.5, 2.0, 5.0], [5, 5, 5, 5], [9, 1, 8, 2]])

    def wanted(x):
        area = lambda d: (d[:, 0] + d[:, 1]) * (d[:, 2] + d[:, 3])  # noqa: E731
        overlap = area(np.minimum(x, targets))
        return -np.log(overlap / (area(x) + area(targets) - overlap))

    check_gradient(lambda x: tblr_iou_loss(tf.constant(targets, tf.float32), x), distances, wanted)
    nothing = tblr_iou_loss(tf.constant(targets, tf.float32), tf.zeros([4, 4]))
    np.testing.assert_allclose(nothing, -np.log(1e-6), rtol=1e-5)


def test_iou_losses():
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 10, (12, 2))
    targets = np.concatenate([corner, corner + rng.uniform(5, 20, (12, 2))], 1)
    predictions = targets + rng.uniform(-2, 2, (12, 4))
    predictions[-1] += 100  # no overlap

    def areas(boxes):
        return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)

    def wanted(kind, x):
        inner = np.concatenate(
            [np.maximum(targets, x)[:, :2], np.minimum(targets, x)[:, 2:]], axis=1
        )
        outer = np.concatenate(
            [np.minimum(targets, x)[:, :2], np.maximum(targets, x)[:, 2:]], axis=1
        )
        union = areas(targets) + areas(x) - areas(inner)
        if kind == "giou":
            return 1 - areas(inner) / union + (areas(outer) - union) / areas(outer)
        return -np.log(np.maximum(areas(inner) / union, 1e-6))

    for kind in ("iou", "giou"):
        check_gradient(
            lambda x, kind=kind: iou_loss(tf.constant(targets, tf.float32), x, kind),
            predictions,
            lambda x, kind=kind: wanted(kind, x),
        )
