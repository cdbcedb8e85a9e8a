"""Remark 1 of the paper: PConv extracts scale-invariant features from a Gaussian pyramid.

One scene is photographed twice, the second time twice as large, by a camera with the same blur (in
pixels). In a Gaussian pyramid each level is blurred just enough to look as sharp as the level below
before it is subsampled, so level l + 1 of the large picture is level l of the small one, and so is
every response of a PConv, which applies the same kernels at each level. Without the blur, or with
one that grows with the level as in the feature pyramid of a network (paper, Fig. 6b), it is not.
"""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.layers import PConv

CAMERA_BLUR = 1.0  # variance in pixels of every picture


def gaussian_blur(image, variance):
    """Convolution with a Gaussian, zero outside the image."""
    if variance == 0:
        return image
    radius = int(np.ceil(5 * np.sqrt(variance)))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-(offsets**2) / (2 * variance))
    kernel /= kernel.sum()
    for axis in (0, 1):
        image = np.apply_along_axis(
            lambda row: np.convolve(row, kernel)[radius:-radius], axis, image
        )
    return image


def scene(size=513, seed=0):
    """Squares of many sizes on fine noise: detail at every scale."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal([size, size])
    for _ in range(60):
        side = int(2 ** rng.uniform(2, 7))
        y, x = rng.integers(0, size - side, 2)
        image[y : y + side, x : x + side] += rng.standard_normal() * 2
    return image


def photograph(content, pixel):
    """Samples the scene at every `pixel`-th point through the camera's blur."""
    return gaussian_blur(content, CAMERA_BLUR * pixel**2)[::pixel, ::pixel]


def image_pyramid(image, num_levels, kind):
    """Levels of half the size each, as `[1, H, W, 1]` tensors."""
    levels, variance = [image], CAMERA_BLUR
    for _ in range(num_levels - 1):
        blur = {"gaussian": 3 * variance, "subsampled": 0.0, "growing": 15 * variance}[kind]
        levels.append(gaussian_blur(levels[-1], blur)[::2, ::2])
        variance = (variance + blur) / 4  # in pixels of the new level
    return [tf.constant(level[None, ..., None].astype(np.float32)) for level in levels]


def change_one_level_up(kind, deformable=False):
    """|response to the large picture at level l + 1 - to the small one at l| / |response|."""
    content = scene()
    small = image_pyramid(photograph(content, 8), 4, kind)  # 65, 33, 17, 9 pixels
    large = image_pyramid(photograph(content, 4), 5, kind)  # 129, 65, 33, 17, 9 pixels
    pconv = PConv(8, deformable=deformable, normalization=None)
    pconv.build([x.shape for x in small])
    rng = np.random.default_rng(1)
    for path, variable in named_variables(pconv).items():
        if path.endswith("kernel") and "offset" not in path:
            variable.assign(rng.standard_normal(variable.shape).astype(np.float32))
    responses, enlarged = pconv(small), pconv(large)
    # The levels with all three terms; the fringe sees the padding.
    pairs = [(responses[level], enlarged[level + 1]) for level in (1, 2)]
    return [
        float(tf.norm(b[:, 3:-3, 3:-3] - a[:, 3:-3, 3:-3]) / tf.norm(a[:, 3:-3, 3:-3]))
        for a, b in pairs
    ]


@pytest.mark.parametrize("deformable", [False, True])
def test_gaussian_pyramid_gives_the_same_response_one_level_up(deformable):
    # A scale-equalising PConv too, while its offsets are zero.
    assert max(change_one_level_up("gaussian", deformable)) < 1e-3


@pytest.mark.parametrize("kind", ["subsampled", "growing"])
def test_other_pyramids_do_not(kind):
    assert min(change_one_level_up(kind)) > 0.1
