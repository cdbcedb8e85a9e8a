"""Steps of several detectors in turn, and what TensorFlow's profiler says of one."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.benchmark import training_markdown, training_speed
from sepc_tf.benchmark.training import NUM_BOXES, operation_times, problem
from sepc_tf.ops.bitmaps import read_bitmaps

pytestmark = pytest.mark.same_on_both_stacks


def test_objects_lie_in_the_image_and_their_masks_in_their_boxes():
    batch = problem(2, (96, 128))
    x1, y1, x2, y2 = np.moveaxis(batch["boxes"], -1, 0)
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= 128).all() and (y2 <= 96).all()
    objects = np.tile(np.arange(NUM_BOXES, dtype=np.int32), [2, 1])
    masks = [batch[name] for name in ("bitmaps", "frames", "offsets")]
    rows, columns = (x.astype(np.int32) for x in np.ogrid[:96, :128])
    pixels = read_bitmaps(*masks, objects, rows[None, None], columns[None, None]).numpy()
    inside = (columns >= x1[..., None, None]) & (columns < x2[..., None, None])
    inside = inside & (rows >= y1[..., None, None]) & (rows < y2[..., None, None])
    assert not pixels[~inside].any()
    shares = pixels.sum(axis=(2, 3)) / inside.sum(axis=(2, 3))
    np.testing.assert_allclose(shares, np.pi / 4, atol=0.05)  # of an ellipse in its box


def test_operations_are_told_apart():
    x, kernel = tf.ones([2, 64, 64, 32]), tf.ones([3, 3, 32, 32])

    @tf.function
    def run():
        y = x
        for _ in range(4):
            y = tf.nn.conv2d(y, kernel, 1, "SAME")
        return tf.reduce_max(tf.nn.max_pool2d(y, 2, 2, "SAME"))

    run()
    times = operation_times(run)
    assert times["Conv2D"] > times["MaxPool"] > 0
    assert list(times.values()) == sorted(times.values(), reverse=True)


def test_steps_become_a_table():
    tiny = ["detector.backbone.width=4", "detector.head.filters=8"]
    report = training_speed(["demo_baseline"], tiny, 1, (64, 64), repeats=1)
    (row,) = report["rows"]
    assert row["ratio"] == 1.0 and row["ms"] > 0.1
    assert {"Conv2DBackpropFilter", "Conv2DBackpropInput"} <= set(row["operations"])
    text = training_markdown(report)
    assert "| demo_baseline | " in text and "\n| Conv2DBackpropFilter | " in text
