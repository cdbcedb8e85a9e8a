"""The correlation of a pyramid's levels, against numpy's and against a resize by hand."""

import json

import numpy as np
import pytest
import tensorflow as tf
from small_run import image, small_run

from sepc_tf.analysis.levels import correlation, level_correlations, plot_levels, strengths

pytestmark = pytest.mark.same_on_both_stacks
RNG = np.random.default_rng(0)


def resized(strength, height, width):
    """Bilinear, borders aligned, one output pixel after the other."""
    rows, columns = strength.shape
    result = np.empty([height, width])
    for y in range(height):
        for x in range(width):
            v = np.clip((y + 0.5) * rows / height - 0.5, 0, rows - 1)
            u = np.clip((x + 0.5) * columns / width - 0.5, 0, columns - 1)
            top, left = int(v), int(u)
            below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = strength[top, left] * (1 - u + left) + strength[top, right] * (u - left)
            lower = strength[below, left] * (1 - u + left) + strength[below, right] * (u - left)
            result[y, x] = upper * (1 - v + top) + lower * (v - top)
    return result


def test_the_matrix_is_numpy_s_of_mean_magnitudes_on_the_finest_grid():
    shapes = [(1, 9, 12, 3), (1, 5, 6, 8), (1, 3, 3, 5)]
    pyramid = [RNG.standard_normal(shape) for shape in shapes]
    maps = [np.abs(x[0]).mean(axis=-1) for x in pyramid]
    expected = np.corrcoef([resized(m, 9, 12).ravel() for m in maps])
    found = correlation(strengths([tf.constant(x, tf.float32) for x in pyramid]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_padding_is_left_out():
    x = RNG.standard_normal([1, 8, 8, 2]).astype(np.float32)
    cut = strengths([tf.constant(x)], size=(0.75, 0.5))
    np.testing.assert_allclose(cut[0], np.abs(x[0, :6, :4]).mean(axis=-1), rtol=1e-6)


def test_a_level_that_never_varies_has_no_correlation():
    found = correlation(np.array([[[1, 2]], [[3, 3]]], np.float32))
    np.testing.assert_allclose(found, [[1, np.nan], [np.nan, np.nan]], rtol=1e-15)


def test_the_stations_of_a_detector():
    options = {"necks": [{"type": "fpn"}, {"type": "bfp"}]}
    run = small_run("retinanet", "pconv", **options)
    images = [image(seed, (64, 96)) for seed in (0, 1)]  # as the network takes them, no padding
    both = level_correlations(run, images)
    assert list(both) == ["backbone", "fpn", "bfp", "class features", "box features"]
    assert both["backbone"]["names"] == ["C3", "C4", "C5"]
    assert both["box features"]["names"] == ["P3", "P4", "P5", "P6", "P7"]
    each = []
    for one in images:
        pyramid = run.detector.pyramid((one[None].astype(np.float32) - 100) / 50, training=False)
        each.append(np.corrcoef(strengths(pyramid)[:4].reshape(4, -1)))
    found = np.array(both["bfp"]["matrix"], float)
    np.testing.assert_allclose(found[:4, :4], np.mean(each, axis=0), atol=1e-4)
    assert np.isnan(found[4]).all(), "P7 is a single cell here"
    plot_levels({"a": both, "b": json.loads(json.dumps(both))}).canvas.draw()
