"""A folded detector computes what the detector with its norms does."""

import numpy as np
import pytest
import tensorflow as tf
from small_run import small_run

from sepc_tf.checkpoints import named_variables
from sepc_tf.export.folding import folded
from sepc_tf.layers.pyramid_normalization import IntegratedBatchNormalization

BOTTLENECKS = {"depth": 50, "groups": 2, "base_width": 32, "width": 8, "deformable_stages": [5]}


@pytest.mark.parametrize(
    ("variant", "backbone", "options"),
    [
        ("sepc", {}, {}),
        ("pconv_ibn", BOTTLENECKS, {"necks": [{"type": "nas_fpn", "num_cells": 1}]}),
    ],
)
def test_the_raw_outputs_are_the_same(variant, backbone, options):
    detector = small_run("retinanet", variant, backbone=backbone, **options).detector
    before = {name: v.numpy() for name, v in named_variables(detector).items()}
    images = tf.constant(np.random.default_rng(1).normal(size=(1, 64, 64, 3)), tf.float32)
    expected = detector(images, training=False)
    copy = folded(detector)
    for layer in copy._flatten_layers():
        if isinstance(layer, IntegratedBatchNormalization):
            layer.gamma.assign(np.full(layer.gamma.shape, np.nan))  # none is used
    found = copy(images, training=False)
    for name in ("classification", "box"):
        for a, b in zip(expected[name], found[name]):
            scale = np.abs(a).max()
            assert scale > 1e-2
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * scale)
    for name, variable in named_variables(detector).items():
        np.testing.assert_array_equal(variable.numpy(), before[name], name)
