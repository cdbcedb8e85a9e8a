"""FreeAnchor's losses against a loop in double precision, and at extreme outputs."""

import numpy as np
import tensorflow as tf
from tiny_detector import random_batch, tiny_detector

from sepc_tf.detectors import FreeAnchor
from sepc_tf.ops.boxes import pairwise_iou


def random_outputs(detector, batch, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = [x.shape for x in detector(batch["images"])["classification"]]
    a = detector.head.num_anchors
    return {
        "classification": [tf.constant(scale * rng.normal(size=s), tf.float32) for s in shapes],
        "box": [tf.constant(scale * rng.normal(size=(*s[:3], 4 * a)), tf.float32) for s in shapes],
    }


def loop_losses(detector, outputs, batch):
    """Both losses, image by image, object by object, straight from the equations."""
    anchors = tf.concat(detector.anchors(outputs), axis=0)
    logits, codes = (np.concatenate(levels, axis=1) for levels in detector.flatten_outputs(outputs))
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    positive = negative = count = 0
    for image in range(len(scores)):
        present = batch["labels"][image] >= 0
        boxes, labels = batch["boxes"][image][present], batch["labels"][image][present]
        count += len(boxes)
        covered = np.zeros(scores[image].shape)
        if len(boxes):
            predicted = detector.coder.decode(anchors, codes[image])
            ious = pairwise_iou(boxes, predicted).numpy().astype(np.float64)
            for box, label in enumerate(labels):
                overlaps = pairwise_iou(boxes[box : box + 1], anchors)[0].numpy()
                bag = np.argsort(-overlaps, kind="stable")[:50]
                target = detector.coder.encode(tf.gather(anchors, bag), boxes[box]).numpy()
                d = np.abs(target - codes[image][bag]).astype(np.float64)
                smooth = np.where(d < 0.11, 0.5 * d**2 / 0.11, d - 0.055).sum(1)
                p = scores[image][bag, label] * np.exp(-0.75 * smooth)
                weight = 1 / np.maximum(1 - p, 1e-12)
                positive += -0.5 * np.log((weight * p).sum() / weight.sum())
                best = ious[box].max()
                if best > 0.6:
                    share = np.clip((ious[box] - 0.6) / (best - 0.6), 0, 1)
                    covered[:, label] = np.maximum(covered[:, label], share)
        q = scores[image] * (1 - covered)
        negative += (-0.5 * q**2 * np.log(1 - q)).sum()
    return positive / count, negative / count / 50


def test_losses_equal_a_loop():
    detector = tiny_detector(FreeAnchor)
    batch = random_batch(batch=3)
    outputs = random_outputs(detector, batch, scale=0.5)
    losses = detector.compute_losses(outputs, batch)
    positive, negative = loop_losses(detector, outputs, batch)
    np.testing.assert_allclose(losses["positive_bag"], positive, rtol=1e-4)
    np.testing.assert_allclose(losses["negative_bag"], negative, rtol=1e-4)


def test_extreme_outputs_have_finite_losses_and_gradients():
    detector = tiny_detector(FreeAnchor)
    batch = random_batch()
    outputs = random_outputs(detector, batch, scale=100.0)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        losses = detector.compute_losses(outputs, batch)
        total = tf.add_n(list(losses.values()))
    assert np.isfinite(total)
    for gradient in tf.nest.flatten(tape.gradient(total, outputs)):
        assert np.isfinite(gradient).all()


def test_a_covered_anchor_is_not_punished():
    detector = tiny_detector(FreeAnchor)
    batch = random_batch()
    outputs = random_outputs(detector, batch, scale=0.0)
    anchors = tf.concat(detector.anchors(outputs), axis=0)
    box = anchors[None, 100:101]
    covered = detector.coverage(anchors, tf.zeros([1, len(anchors), 4]), box, tf.constant([[2]]))
    assert covered[0, 100, 2].numpy() == 1.0  # predicts the object exactly
    assert not covered[0, :, :2].numpy().any()  # of another class
    losses = detector.negative_losses(tf.constant([[[3.0]]]), tf.constant([[[1.0]]]))
    np.testing.assert_array_equal(losses, [[[0.0]]])


def test_many_objects_have_the_same_losses_in_a_graph_without_sizes():
    detector = tiny_detector(FreeAnchor)
    batch = random_batch(batch=3, max_boxes=21)
    batch["labels"] = np.where(np.arange(21) < [[21], [10], [0]], batch["labels"] % 3, -1)
    corner = np.random.default_rng(2).uniform(0, 40, (3, 21, 2))
    batch["boxes"] = np.concatenate([corner, corner + np.array([20.0, 16.0])], -1).astype(
        np.float32
    )
    outputs = random_outputs(detector, batch, scale=0.5)
    positive, negative = loop_losses(detector, outputs, batch)
    targets = {name: tf.constant(batch[name]) for name in ("boxes", "labels", "image_sizes")}
    signature = {
        name: tf.TensorSpec([None, None, *x.shape[2:]][: x.shape.rank], x.dtype)
        for name, x in targets.items()
    }
    run = tf.function(
        lambda batch: detector.compute_losses(outputs, batch), input_signature=[signature]
    )
    compiled = tf.function(lambda batch: detector.compute_losses(outputs, batch), jit_compile=True)
    for losses in (run(targets), compiled(targets)):
        np.testing.assert_allclose(losses["positive_bag"], positive, rtol=1e-4)
        np.testing.assert_allclose(losses["negative_bag"], negative, rtol=1e-4)


def test_negative_gradient_is_the_differential_quotient():
    detector = tiny_detector(FreeAnchor)
    logits = np.linspace(-12, 12, 49)
    logits, covered = (x.ravel() for x in np.meshgrid(logits, [0.0, 0.3, 0.9, 1.0]))

    def loss(logits):
        q = (1 - covered) / (1 + np.exp(-logits))
        return -0.5 * q**2 * np.log1p(-q)

    step = 1e-5
    want = (loss(logits + step) - loss(logits - step)) / (2 * step)
    x, b = tf.constant(logits, tf.float32), tf.constant(covered, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        losses = detector.negative_losses(x, b)
    # Below q = 1e-3 a float32 near 1 has too few digits left for its logarithm: 1e-9 and less.
    np.testing.assert_allclose(losses, loss(logits), rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(tape.gradient(losses, x), want, rtol=2e-4, atol=1e-9)
    # -ln stops at 85: no slope from there on.
    with tf.GradientTape() as tape:
        tape.watch(x)
        losses = detector.negative_losses(x + 100.0, tf.zeros_like(x))
    assert losses.numpy().max() < 43
    np.testing.assert_array_equal(tape.gradient(losses, x), tf.zeros_like(x))
