"""The prediction head: shapes, initial scores, parameters."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.detectors import PredictionHead


def test_initial_outputs_and_channel_order():
    head = PredictionHead(3, 2, box_activation="relu", box_bias=1.0)
    head.build(([(None, None, None, 8)], [(None, None, None, 8)]))
    features = [tf.zeros([1, 5, 6, 8]), tf.zeros([1, 2, 3, 8])]
    outputs = head((features, features))
    for logits, boxes, shape in zip(outputs["classification"], outputs["box"], ((5, 6), (2, 3))):
        assert logits.shape == (1, *shape, 6) and boxes.shape == (1, *shape, 8)
        np.testing.assert_allclose(tf.sigmoid(logits), 0.01, rtol=1e-5)
        np.testing.assert_array_equal(boxes, 1.0)
    assert {v.name.split("/")[-1].split(":")[0] for v in head.variables} == {"kernel", "bias"}
    kernels = np.concatenate([np.ravel(c.kernel) for c in (head.classification, head.box)])
    np.testing.assert_allclose(kernels.std(), 0.01, rtol=0.1)
    shapes = head.compute_output_shape(([f.shape for f in features],) * 2)
    assert [tuple(s) for s in shapes["box"]] == [(1, 5, 6, 8), (1, 2, 3, 8)]


def test_relu_only_on_boxes():
    head = PredictionHead(3, 1, box_activation="relu")
    features = [tf.random.stateless_normal([1, 4, 4, 8], [0, 1], 0, 100.0)]
    outputs = head((features, features))
    assert (outputs["box"][0] >= 0).numpy().all() and (outputs["box"][0] == 0).numpy().any()
    assert (outputs["classification"][0] < 0).numpy().any()


def test_outputs_are_float32_in_mixed_precision():
    head = PredictionHead(3, 1, dtype="mixed_bfloat16")
    outputs = head(([tf.zeros([1, 4, 4, 8])],) * 2)
    assert {x.dtype for x in tf.nest.flatten(outputs)} == {tf.float32}
    assert head.box.compute_dtype == "bfloat16"


def test_config_round_trip_and_bad_arguments():
    head = PredictionHead(3, 2, "relu", 1.0, 0.02, name="head")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    for name in ("num_classes", "num_anchors", "box_activation", "box_bias", "prior", "name"):
        assert getattr(again, name) == getattr(head, name)
    with pytest.raises(ValueError, match="num_classes=0"):
        PredictionHead(0, 9)
    with pytest.raises(ValueError, match="'gelu'"):
        PredictionHead(3, 9, "gelu")
