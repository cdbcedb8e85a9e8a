"""Steps of several detectors in turn, and what TensorFlow's profiler says of one."""

import tensorflow as tf

from sepc_tf.benchmark import training_markdown, training_speed
from sepc_tf.benchmark.training import operation_times
from sepc_tf.config import load_config


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
    configs = {"demo_baseline": load_config("demo_baseline", tiny)}
    report = training_speed(configs, batch=1, image_size=(64, 64), repeats=1)
    (row,) = report["rows"]
    assert row["ratio"] == 1.0 and row["ms"] > 0.1
    assert {"Conv2DBackpropFilter", "Conv2DBackpropInput"} <= set(row["operations"])
    text = training_markdown(report)
    assert "| demo_baseline | " in text and "\n| Conv2DBackpropFilter | " in text
