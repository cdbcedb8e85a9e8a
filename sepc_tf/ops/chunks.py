"""Loops over the boxes of a batch, a few at a time.

Every box meets every anchor where labels are assigned: 201600 of them at 800 x 1333, 0.8 MB for a
float32 of each. With all boxes at once that is 200 MB of each image and tensor at 256 boxes.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

# 6.5 MB per image and tensor at 800 x 1333.
BOXES_AT_ONCE = 8


def fold_boxes(step: Callable[..., Any], initial: Any, *values: tf.Tensor) -> Any:
    """Takes the boxes of all images one after the other, so that memory does not grow with M.

    `state = step(state, 0, box 0)`, then `step(state, 1, box 1)`, ... A round of the loop takes
    `BOXES_AT_ONCE` boxes, which may be computed side by side. Absent boxes may follow the last one:
    their values are 0 or False.

    Args:
        step: function of a state, the index of a box (int or int32 scalar) and its entry
            `[B, ...]` of each of `values`; returns the next state.
        initial: state before the first box; a tensor or a nest of tensors.
        *values: `[B, M, ...]`, M >= 1.

    Returns:
        The state after the last box.

    Example:
        >>> areas = tf.constant([[1.0, 3.0, 2.0]])
        >>> fold_boxes(lambda total, index, area: total + area, tf.zeros([1]), areas).numpy()
        array([6.], dtype=float32)
    """
    count = values[0].shape[1]
    if count is not None and count <= BOXES_AT_ONCE:
        state = initial
        for index in range(count):
            state = step(state, index, *(x[:, index] for x in values))
        return state

    def round_of_boxes(state, elements):
        first, *entries = elements
        for i in range(BOXES_AT_ONCE):
            state = step(state, first + i, *(x[i] for x in entries))
        return state

    rounds = [_rounds(x, BOXES_AT_ONCE) for x in values]
    starts = tf.range(tf.shape(rounds[0])[0]) * BOXES_AT_ONCE
    # One round at a time: rounds side by side would need the memory of all of them.
    return tf.foldl(round_of_boxes, (starts, *rounds), initial, parallel_iterations=1)


def map_boxes(
    function: Callable[[tf.Tensor], tf.Tensor],
    boxes: tf.Tensor,
    dtype: tf.DType,
    at_once: int | tf.Tensor = BOXES_AT_ONCE,
) -> tf.Tensor:
    """Applies a function to a few boxes at a time, so that memory does not grow with their number.

    Args:
        function: from boxes `[n, B, 4]` to something of each, `[n, B, ...]`; n <= `at_once`.
        boxes: `[B, N, 4]`, N >= 1.
        dtype: of what `function` returns.
        at_once: how many boxes of each image; int or int32 scalar.

    Returns:
        `[B, N, ...]`.

    Example:
        >>> boxes = tf.constant([[[0.0, 0.0, 3.0, 1.0]]])
        >>> map_boxes(lambda few: tf.reduce_max(few, axis=2), boxes, tf.float32).numpy()
        array([[3.]], dtype=float32)
    """
    count = boxes.shape[1]
    if count is not None and isinstance(at_once, int) and count <= at_once:
        return _swap(function(_swap(boxes)))
    count = tf.shape(boxes)[1]
    rounds = _rounds(boxes, tf.minimum(count, at_once))
    results = tf.map_fn(function, rounds, parallel_iterations=1, fn_output_signature=dtype)
    results = tf.reshape(results, tf.concat([[-1], tf.shape(results)[2:]], axis=0))
    return _swap(results[:count])


def _rounds(values, size):
    """`[B, M, ...]` -> `[M / size rounded up, size, B, ...]`, padded with 0 or False."""
    values = _swap(values)
    shape = tf.shape(values)
    padding = tf.pad([[0, -shape[0] % size]], [[0, values.shape.rank - 1], [0, 0]])
    values = tf.pad(values, padding)
    return tf.reshape(values, tf.concat([[-1, size], shape[1:]], axis=0))


def _swap(values):
    """`[B, M, ...]` -> `[M, B, ...]` and back."""
    return tf.transpose(values, [1, 0, *range(2, values.shape.rank)])
