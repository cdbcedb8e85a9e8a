"""Heads without norms keep the size of features at any width; published ones start as ever."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.config import load_config
from sepc_tf.config_files import config_names
from sepc_tf.layers import PConv
from sepc_tf.layers.kernel_initializer import kernel_initializer
from sepc_tf.necks import SEPC, ConvTowers, PConvNeck

SIZES = ((24, 24), (12, 12), (6, 6), (3, 3), (2, 2))


def features(channels):
    """Rectified noise, as a ReLU leaves it."""
    rng = np.random.default_rng(0)
    return [
        tf.constant(np.maximum(rng.standard_normal([2, *size, channels]), 0).astype(np.float32))
        for size in SIZES
    ]


def root_mean_squares(pyramid):
    return np.array([np.sqrt(np.mean(np.square(x))) for x in pyramid])


@pytest.mark.parametrize("channels", [16, 64, 256])
def test_four_pconvs_keep_the_size_of_features_at_any_width(channels):
    keras.utils.set_random_seed(0)
    pyramid = features(channels)
    ratios = root_mean_squares(PConvNeck(channels, num_convs=4)(pyramid)) / root_mean_squares(
        pyramid
    )
    # The coarsest maps, of 3 and 2 pixels, are mostly the zeros around them.
    assert np.all((ratios[:3] > 0.5) & (ratios[:3] < 2)) and np.all(ratios > 0.3), ratios


@pytest.mark.same_on_both_stacks
@pytest.mark.parametrize("channels", [16, 256])
def test_towers_and_extra_convolutions_keep_it_too(channels):
    keras.utils.set_random_seed(0)
    pyramid = features(channels)
    before = root_mean_squares(pyramid)[:3]
    for head in (ConvTowers(channels), SEPC.variant("pconv", filters=channels)):
        for outputs in head(pyramid):
            ratios = root_mean_squares(outputs)[:3] / before
            assert np.all((ratios > 0.4) & (ratios < 2)), (head.name, ratios)


@pytest.mark.same_on_both_stacks
def test_the_papers_kernels_where_a_norm_follows_or_they_are_asked_for():
    def deviations(pconv):
        pconv.build([(2, *size, 64) for size in SIZES])
        kernels = [np.array(conv.kernel) for conv in (pconv.same, pconv.coarser, pconv.finer)]
        correlations = np.corrcoef([kernel.ravel() for kernel in kernels])
        np.testing.assert_allclose(correlations, np.eye(3), atol=0.03)  # three different draws
        return [kernel.std() for kernel in kernels]

    np.testing.assert_allclose(deviations(PConv(64)), 0.01, rtol=0.02)
    plain = PConv(64, normalization=None, kernel_stddev=0.01)
    np.testing.assert_allclose(deviations(plain), 0.01, rtol=0.02)
    rule = (2 / (9 * 64 * 2)) ** 0.5
    np.testing.assert_allclose(deviations(PConv(64, normalization=None)), rtol=0.02, desired=rule)
    restored = PConv.from_config(PConv(64, kernel_stddev=0.3).get_config())
    np.testing.assert_allclose(deviations(restored), 0.3, rtol=0.02)


@pytest.mark.same_on_both_stacks
@pytest.mark.parametrize("name", [name for name in config_names() if name.endswith(("1x", "2x"))])
def test_every_published_config_starts_as_the_paper(name):
    config = load_config(name).detector
    heads = [(config.head.kernel_stddev, config.head.normalization)]
    if config.head.variant in ("pconv_ibn", "sepc_lite", "sepc"):
        heads = [(None, "integrated")]
    if "rcnn" in name or "htc" in name:  # no head of a config, but a neck
        heads = [
            (neck["kernel_stddev"], neck["normalization"])
            for neck in config.necks
            if neck["type"] == "pconv"
        ]
    for stddev, normalization in heads:
        initializer = kernel_initializer(stddev, normalization)
        assert initializer.get_config()["stddev"] == 0.01
