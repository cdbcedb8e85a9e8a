"""Loops over boxes against loops in numpy, for numbers of boxes around one round's."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.chunks import BOXES_AT_ONCE, fold_boxes, map_boxes

COUNTS = [1, BOXES_AT_ONCE - 1, BOXES_AT_ONCE, BOXES_AT_ONCE + 1, 3 * BOXES_AT_ONCE + 2]
# Eager with known sizes, in a graph without, compiled.
MODES = ["eager", "unknown", "compiled"]


def run(function, mode, *arguments):
    if mode == "eager":
        return function(*arguments)
    unknown = [tf.TensorSpec([None, None, *x.shape[2:]], x.dtype) for x in arguments]
    compiled = mode == "compiled"
    signature = None if compiled else unknown
    return tf.function(function, input_signature=signature, jit_compile=compiled)(*arguments)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", COUNTS)
def test_fold_takes_the_boxes_in_order(count, mode):
    rng = np.random.default_rng(count)
    values = rng.uniform(1, 2, (2, count, 3)).astype(np.float32)
    present = rng.uniform(size=(2, count)) < 0.7

    def step(state, index, value, here):
        total, latest = state
        return (
            tf.where(here[:, None], 0.5 * total + value, total),
            tf.where(here, index, latest),
        )

    def fold(values, present):
        return fold_boxes(step, (tf.zeros([2, 3]), tf.fill([2], -1)), values, present)

    total, latest = run(fold, mode, tf.constant(values), tf.constant(present))
    want, want_latest = np.zeros((2, 3)), np.full(2, -1)
    for image in range(2):
        for box in range(count):
            if present[image, box]:
                want[image] = 0.5 * want[image] + values[image, box]
                want_latest[image] = box
    np.testing.assert_allclose(total, want, rtol=1e-5)
    np.testing.assert_array_equal(latest, want_latest)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("at_once", [3, BOXES_AT_ONCE])
def test_map_keeps_every_box_in_its_place(count, mode, at_once):
    boxes = np.random.default_rng(count).uniform(0, 9, (2, count, 4)).astype(np.float32)
    seen = []

    def function(few):
        seen.append(few.shape[0])
        return few[..., :3] * [1.0, 2.0, 3.0]

    got = run(
        lambda boxes: map_boxes(function, boxes, tf.float32, at_once), mode, tf.constant(boxes)
    )
    np.testing.assert_array_equal(got, boxes[..., :3] * np.float32([1, 2, 3]))
    if mode == "eager":
        assert max(seen) == min(count, at_once)
