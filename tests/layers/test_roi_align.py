"""The layer RoIAlign: what it reads, boxes under mixed precision, saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.ops.roi_align import roi_align

BOXES = np.array([[[3.0, 5.0, 301.3, 50.0], [1.0, 2.0, 9.0, 8.0]]], np.float32)


def pyramid():
    rng = np.random.default_rng(0)
    sizes = [(16, 88), (8, 44), (4, 22)]
    return [tf.constant(rng.standard_normal((1, *size, 2)), tf.float32) for size in sizes]


def test_reads_as_many_levels_as_it_has_strides():
    maps, present = pyramid(), np.array([[True, False]])
    layer = RoIAlign(strides=(4, 8), size=3, finest_scale=30.0, convention="mmdet1")
    got = layer(maps, tf.constant(BOXES), tf.constant(present))
    want = roi_align(maps[:2], BOXES, present, strides=(4, 8), size=3, finest_scale=30.0,
                     convention="mmdet1")  # fmt: skip
    np.testing.assert_array_equal(got, want)
    shapes = [[tuple(x.shape) for x in maps], BOXES.shape, present.shape]
    assert tuple(layer.compute_output_shape(*shapes)) == tuple(got.shape)
    with pytest.raises(ValueError, match="expected at least 4 levels"):
        RoIAlign()(maps, tf.constant(BOXES))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_boxes_stay_float32_under_mixed_precision(policy):
    # 301.3 is 301.25 in float16 and 302 in bfloat16; maps of whole numbers show only the boxes.
    maps = [tf.zeros([1, 4, 88, 1]) + tf.reshape(tf.range(88.0), [1, 1, 88, 1])]
    half = RoIAlign(strides=(4,), dtype=policy)(maps, tf.constant(BOXES))
    assert half.dtype == policy.removeprefix("mixed_")
    want = tf.cast(RoIAlign(strides=(4,))(maps, tf.constant(BOXES)), half.dtype)
    np.testing.assert_array_equal(tf.cast(half, tf.float32), tf.cast(want, tf.float32))


def test_a_functional_model_with_it_is_saved(tmp_path):
    maps = [keras.Input((None, None, 2)) for _ in range(2)]
    boxes = keras.Input((None, 4))
    pooled = RoIAlign(strides=(4, 8), size=2, samples=1, finest_scale=30.0)(maps, boxes)
    model = keras.Model([*maps, boxes], pooled)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    inputs = [*pyramid()[:2], tf.constant(BOXES)]
    np.testing.assert_array_equal(again(inputs), model(inputs))
    assert np.abs(again(inputs)).max() > 0.1
