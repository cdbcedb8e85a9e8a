"""Labels of cells, made of maps or of masks."""

import numpy as np
import pytest
import tensorflow as tf
from semantic_batch import objects_batch as batch

from sepc_tf.ops.semantic_labels import UNKNOWN, labels_of_maps, labels_of_masks

pytestmark = pytest.mark.same_on_both_stacks


@pytest.mark.parametrize("convention, first", [("modern", 4), ("mmdet1", 0)])
def test_labels_of_maps_are_those_of_one_pixel_and_unknown_past_the_map(convention, first):
    maps = np.random.default_rng(0).integers(0, 256, (2, 35, 50)).astype(np.uint8)
    got = labels_of_maps(tf.constant(maps), 8, tf.constant([5, 7]), convention).numpy()
    for i, j in np.ndindex(5, 7):
        y, x = first + 8 * i, first + 8 * j
        want = maps[:, y, x] if y < 35 and x < 50 else [UNKNOWN] * 2
        np.testing.assert_array_equal(got[:, i, j], want)


def test_labels_of_masks_are_those_of_the_smallest_box():
    got = labels_of_masks(batch(), 8, tf.constant([4, 6])).numpy()[0]
    u = UNKNOWN  # the last column's middle, 44, is outside the image; a box without a mask
    want = [[2, 2, 2, 2, 2, u], [2, 5, 5, 2, 2, u], [2, 2, 2, 2, 2, u], [0, 0, 0, 0, u, u]]
    np.testing.assert_array_equal(got, want)
