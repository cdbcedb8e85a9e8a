"""The semantic branch: the loss of the known cells, against numpy."""

import numpy as np
import tensorflow as tf
from semantic_batch import objects_batch as batch

from sepc_tf.detectors.two_stage.semantic_head import SemanticBranch, SemanticHead
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.ops.semantic_labels import UNKNOWN, labels_of_masks


def test_loss_is_the_mean_over_known_cells_and_given_labels_come_first():
    branch = SemanticBranch(RoIAlign((8,), 14), head=None, loss_weight=0.5)
    logits = np.random.default_rng(0).normal(size=(1, 4, 6, 7)).astype(np.float32)
    outputs = {"logits": tf.constant(logits)}
    given = np.full((1, 4, 6), UNKNOWN)
    given[0, 1, 2], given[0, 3, 0] = 6, 0
    log_softmax = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    want = -(log_softmax[0, 1, 2, 6] + log_softmax[0, 3, 0, 0]) / 2 * 0.5
    pixels = tf.constant(given.repeat(8, axis=1).repeat(8, axis=2), tf.uint8)
    got = branch.loss(outputs, {**batch(), "semantic": pixels})
    np.testing.assert_allclose(got, want, rtol=1e-5)
    labels = labels_of_masks(batch(), 8, tf.constant([4, 6])).numpy()
    known = np.argwhere(labels != UNKNOWN)
    want = -np.mean([log_softmax[(*cell, labels[tuple(cell)])] for cell in known]) * 0.5
    np.testing.assert_allclose(branch.loss(outputs, batch()), want, rtol=1e-5)
    nothing = branch.loss(outputs, {"semantic": tf.fill([1, 32, 48], UNKNOWN)})
    assert float(nothing) == 0.0


def test_features_of_boxes_are_means_where_a_smaller_size_is_asked_for():
    branch = SemanticBranch(RoIAlign((8,), 4), head=None)
    features = tf.constant(np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32))
    boxes, present = tf.constant([[[3.0, 5, 40, 50]]]), tf.constant([[True]])
    outputs = {"features": features}
    fine = branch.pooled(outputs, boxes, present, 4).numpy()
    want = fine.reshape(1, 1, 2, 2, 2, 2, 3).mean(axis=(3, 5))
    np.testing.assert_allclose(branch.pooled(outputs, boxes, present, 2), want, rtol=1e-5)


def test_levels_of_any_size_are_brought_to_one():
    head = SemanticHead(5, num_levels=3, filters=4, num_convs=1)
    maps = [tf.ones([1, *size, 2]) for size in ((9, 14), (5, 7), (3, 4))]
    head.build([x.shape for x in maps])
    outputs = head(maps)
    assert outputs["logits"].shape == (1, 5, 7, 5) and outputs["features"].shape == (1, 5, 7, 4)
    shapes = head.compute_output_shape([x.shape for x in maps])
    assert shapes == {"logits": (1, 5, 7, 5), "features": (1, 5, 7, 4)}
