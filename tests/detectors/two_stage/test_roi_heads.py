"""A stage of a two-stage detector: candidates, samples, losses, boxes, against numpy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.detectors.two_stage.roi_heads import BoxHead, RoIStage
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.ops.coders import BoxCoder
from sepc_tf.ops.matching import IGNORED, MaxIoUMatcher
from sepc_tf.ops.sampling import RandomSampler

OBJECTS = np.array([[[10, 10, 30, 30], [40, 10, 60, 50]], [[-1] * 4] * 2], np.float32)
LABELS = np.array([[2, 0], [-1, -1]], np.int32)
PROPOSALS = np.array(
    [
        [[11, 10, 31, 30], [40, 10, 60, 49], [0, 0, 5, 5], [0, 0, 0, 0]],
        [[5, 5, 20, 20], [30, 30, 50, 50], [0, 0, 0, 0], [0, 0, 0, 0]],
    ],
    np.float32,
)
PRESENT = np.array([[True, True, True, False], [True, True, False, False]])
BATCH = {"boxes": tf.constant(OBJECTS), "labels": tf.constant(LABELS)}
STDS = (0.1, 0.1, 0.2, 0.2)


def stage(class_agnostic=False):
    return RoIStage(
        pooler=RoIAlign((4,), size=2, samples=1),
        head=BoxHead(3, units=8, class_agnostic=class_agnostic),
        matcher=MaxIoUMatcher(0.5, 0.5, claim_iou=0.5),
        sampler=RandomSampler(4, 0.5),
        coder=BoxCoder(STDS),
    )


def samples(of):
    boxes, matches = of.candidates(tf.constant(PROPOSALS), tf.constant(PRESENT), BATCH)
    rows = tf.constant([[0, 2, 3, 4], [2, 3, 0, 0]])
    present = tf.constant([[True, True, True, True], [True, True, False, False]])
    return of.samples(boxes, matches, rows, present, BATCH)


def test_objects_are_candidates_matched_to_themselves():
    boxes, matches = stage().candidates(tf.constant(PROPOSALS), tf.constant(PRESENT), BATCH)
    np.testing.assert_array_equal(boxes, np.concatenate([OBJECTS, PROPOSALS], axis=1))
    want = [[0, 1, 0, 1, -1, IGNORED], [IGNORED, IGNORED, -1, -1, IGNORED, IGNORED]]
    np.testing.assert_array_equal(matches, want)


def test_samples_hold_the_code_and_the_column_of_their_object():
    got = {name: x.numpy() for name, x in samples(stage()).items()}
    np.testing.assert_array_equal(got["columns"], [[3, 3, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(got["codes"][0, 0], [0, 0, 0, 0])  # the object itself
    np.testing.assert_allclose(got["codes"][0, 1], [-0.5, 0, 0, 0], atol=1e-5)  # 1 of 20 pixels
    np.testing.assert_allclose(
        got["codes"][0, 2], [0, 0.5 / 39 / 0.1, 0, np.log(40 / 39) / 0.2], rtol=1e-4
    )
    assert np.isfinite(got["codes"]).all() and not got["codes"][1].any()
    np.testing.assert_array_equal(got["boxes"][1, 2:], np.zeros((2, 4)))


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_losses_are_sums_over_samples_by_their_number(class_agnostic):
    of = stage(class_agnostic)
    taken, rng = samples(of), np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 4)).astype(np.float32)
    codes = 2 * rng.normal(size=(2, 4, 1 if class_agnostic else 4, 4)).astype(np.float32)
    losses = of.losses({"classes": tf.constant(logits), "boxes": tf.constant(codes)}, taken)
    classification = box = 0.0
    for n, i in np.argwhere(taken["present"].numpy()):
        column = int(taken["columns"][n, i])
        classification += np.log(np.exp(logits[n, i]).sum()) - logits[n, i, column]
        if column:
            own = codes[n, i, 0 if class_agnostic else column]
            d = np.abs(own - taken["codes"][n, i].numpy())
            box += np.where(d < 1, d * d / 2, d - 0.5).sum()
    np.testing.assert_allclose(losses["classification"], classification / 6, rtol=1e-5)
    np.testing.assert_allclose(losses["box"], box / 6, rtol=1e-5)


def test_gradients_are_finite_where_boxes_are_padding_or_have_no_area():
    of = stage()
    taken = samples(of)
    outputs = {"classes": tf.zeros([2, 4, 4]), "boxes": tf.zeros([2, 4, 4, 4])}
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        total = tf.add_n(list(of.losses(outputs, taken).values()))
    gradients = tape.gradient(total, outputs)
    assert all(np.isfinite(g).all() for g in gradients.values())
    assert np.any(gradients["boxes"][0, 1]) and not np.any(gradients["boxes"][1])


def test_scored_boxes_leave_out_the_background_and_padding():
    of, rng = stage(), np.random.default_rng(1)
    logits = tf.constant(rng.normal(size=(2, 4, 4)), tf.float32)
    codes = tf.constant(rng.normal(size=(2, 4, 4, 4)), tf.float32)
    outputs, sizes = {"classes": logits, "boxes": codes}, tf.constant([[40, 50], [64, 64]])
    boxes, scores = of.scored_boxes(outputs, tf.constant(PROPOSALS), tf.constant(PRESENT), sizes)
    np.testing.assert_allclose(scores[0, 1], tf.nn.softmax(logits)[0, 1, 1:], rtol=1e-6)
    assert not np.any(scores.numpy()[~PRESENT])
    x1, y1, x2, y2 = PROPOSALS[0, 1]
    dx, dy, dw, dh = codes[0, 1, 2].numpy() * STDS
    centre = np.array([(x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)])
    half = np.array([(x2 - x1) * np.exp(dw), (y2 - y1) * np.exp(dh)]) / 2
    want = np.clip(np.concatenate([centre - half, centre + half]), 0, [50, 40, 50, 40])
    np.testing.assert_allclose(boxes[0, 1, 1], want, rtol=1e-5)
    refined = of.refined(outputs, tf.constant(PROPOSALS), tf.constant([[0, 2, 0, 0]] * 2), sizes)
    np.testing.assert_allclose(refined[0, 1], want, rtol=1e-5)


def test_the_box_head_flattens_channel_by_channel_and_is_saved(tmp_path):
    head = BoxHead(2, units=8, num_layers=1)
    pooled = tf.constant(np.random.default_rng(0).normal(size=(1, 2, 2, 2, 3)), tf.float32)
    got = head(pooled)
    first, classes = head.layers[0], head.label_logits
    flat = np.transpose(pooled[0], (0, 3, 1, 2)).reshape(2, 12)
    hidden = np.maximum(flat @ np.array(first.kernel), 0)
    np.testing.assert_allclose(got["classes"][0], hidden @ np.array(classes.kernel), atol=1e-5)
    shapes = head.compute_output_shape(pooled.shape)
    assert {k: tuple(v.shape) for k, v in got.items()} == shapes
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    assert again.get_config() == head.get_config()
