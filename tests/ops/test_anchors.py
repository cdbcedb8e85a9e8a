"""Anchors: places, sides, order, validity."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.anchors import AnchorGenerator


def test_modern_anchors_have_the_stated_centres_sides_and_order():
    generator = AnchorGenerator(strides=(8, 16))
    sizes = [(3, 4), (2, 2)]
    for stride, (height, width), anchors in zip((8, 16), sizes, generator(sizes)):
        grid = anchors.numpy().reshape(height, width, 3, 3, 4)
        for y, x, ratio, scale in np.ndindex(height, width, 3, 3):
            x1, y1, x2, y2 = grid[y, x, ratio, scale]
            np.testing.assert_allclose((x1 + x2) / 2, (x + 0.5) * stride, atol=1e-4)
            np.testing.assert_allclose((y1 + y2) / 2, (y + 0.5) * stride, atol=1e-4)
            np.testing.assert_allclose((y2 - y1) / (x2 - x1), [0.5, 1, 2][ratio], rtol=1e-5)
            area = (4 * stride * 2 ** (scale / 3)) ** 2
            np.testing.assert_allclose((y2 - y1) * (x2 - x1), area, rtol=1e-5)


def test_mmdet1_anchors_of_stride_8():
    want = [  # by hand: 3.5 -+ (side - 1) / 2, rounded
        [-19, -7, 26, 14],
        [-25, -10, 32, 17],
        [-32, -14, 39, 21],
        [-12, -12, 19, 19],
        [-16, -16, 23, 23],
        [-21, -21, 28, 28],
        [-7, -19, 14, 26],
        [-10, -25, 17, 32],
        [-14, -32, 21, 39],
    ]
    np.testing.assert_array_equal(AnchorGenerator(convention="mmdet1").cell_anchors(8), want)


def test_dynamic_sizes_in_a_graph():
    generator = AnchorGenerator(strides=(8,))

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int32)])
    def anchors(size):
        return generator([tf.unstack(size)])[0]

    np.testing.assert_array_equal(anchors(tf.constant([5, 3])), generator([(5, 3)])[0])


def test_cells_beyond_the_padded_image_are_not_valid():
    generator = AnchorGenerator(strides=(8, 64), scales_per_octave=1, ratios=(1.0, 2.0))
    sizes = [(12, 20), (2, 3)]
    image_sizes = tf.constant([[96, 160], [65, 33], [30, 64]])
    flags = generator.valid(sizes, image_sizes).numpy()
    # Padded to (96, 160), (96, 64), (32, 64): rows and columns rounded up to whole cells.
    for i, want in enumerate([((12, 20), (2, 3)), ((12, 8), (2, 1)), ((4, 8), (1, 1))]):
        fine, coarse = np.split(flags[i], [12 * 20 * 2])
        for got, size, (rows, columns) in zip((fine, coarse), sizes, want):
            inside = np.zeros((*size, 2), bool)
            inside[:rows, :columns] = True
            np.testing.assert_array_equal(got.reshape(inside.shape), inside)


def test_config_round_trip_and_bad_arguments():
    generator = AnchorGenerator(strides=[8, 16], convention="mmdet1")
    assert AnchorGenerator.from_config(generator.get_config()) == generator
    assert generator.anchors_per_cell == 9
    with pytest.raises(ValueError, match="ratios must not be empty"):
        AnchorGenerator(ratios=())
    with pytest.raises(ValueError, match=r"must have 2 entries.*got 1"):
        generator([(2, 2)])


def test_named_scales_take_the_place_of_octaves():
    octaves = AnchorGenerator(strides=(8,), octave_base=4.0, scales_per_octave=2, ratios=(0.5, 1))
    named = AnchorGenerator(strides=(8,), scales=(4.0, 4.0 * 2**0.5), ratios=(0.5, 1))
    np.testing.assert_allclose(named.cell_anchors(8), octaves.cell_anchors(8), rtol=1e-6)
    assert named.anchors_per_cell == 4
    assert AnchorGenerator.from_config(named.get_config()) == named
    with pytest.raises(ValueError, match="scales must not be empty"):
        AnchorGenerator(scales=())
