"""RoIAlign against its definition, written as a loop over single samples."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.roi_align import portable, roi_align, roi_levels

STRIDES, SIZES, CHANNELS = (4, 8), [(9, 13), (5, 7)], 3
# Inside, over the border, far outside, larger than the map, one pixel, nothing, inside out, huge.
BOXES = [
    [3.0, 5.0, 30.0, 21.0],
    [-9.0, 2.0, 11.0, 60.0],
    [40.3, 30.1, 75.2, 50.7],
    [500.0, 500.0, 600.0, 600.0],
    [-90.0, -80.0, -70.0, -60.0],
    [-30.0, -30.0, 100.0, 90.0],
    [7.0, 8.0, 8.0, 9.0],
    [6.5, 6.5, 6.5, 6.5],
    [20.0, 20.0, 10.0, 12.0],
    [-1e30, -1e30, 2.7e30, 2.7e30],
    [np.inf, 0.0, np.nan, 3.0],
    [-4.0, -4.0, 52.0, 36.0],
]


def maps(dtype=np.float64, batch=2):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((batch, *size, CHANNELS)).astype(dtype) for size in SIZES]


def boxes_of_two_images():
    boxes = np.array(BOXES)
    return np.stack([boxes, boxes[::-1] + np.array([1.25, 0.5, 2.0, 0.75])])


def level_of(box, last, finest_scale):
    width, height = max(box[2] - box[0] + last, 0), max(box[3] - box[1] + last, 0)
    if not width * height > 0:  # NaN too
        return 0
    level = np.floor(np.log2(np.sqrt(width * height) / finest_scale + 1e-6))
    return int(np.clip(level, 0, len(STRIDES) - 1))


def sample(x, at_y, at_x):
    height, width, _ = x.shape
    if not (-1 <= at_y <= height and -1 <= at_x <= width):
        return np.zeros(x.shape[-1])
    at_y, at_x = np.clip(at_y, 0, height - 1), np.clip(at_x, 0, width - 1)
    y0, x0 = int(at_y), int(at_x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = at_y - y0, at_x - x0
    top = (1 - dx) * x[y0, x0] + dx * x[y0, x1]
    return (1 - dy) * top + dy * ((1 - dx) * x[y1, x0] + dx * x[y1, x1])


def reference(pyramid, boxes, size, samples, finest_scale, convention):
    """The definition in float64, one sample after the other."""
    last, shift = (1.0, 0.0) if convention == "mmdet1" else (0.0, 0.5)
    out = np.zeros((*boxes.shape[:2], size, size, CHANNELS))
    for n, r in np.ndindex(*boxes.shape[:2]):
        level = level_of(boxes[n, r], last, finest_scale)
        x1, y1, x2, y2 = (boxes[n, r] + [0, 0, last, last]) / STRIDES[level] - shift
        width, height = x2 - x1, y2 - y1
        if convention == "mmdet1":
            width, height = max(width, 0.0), max(height, 0.0)
        for i, j, a, b in np.ndindex(size, size, samples, samples):
            at_y = y1 + (i + (a + 0.5) / samples) * height / size
            at_x = x1 + (j + (b + 0.5) / samples) * width / size
            out[n, r, i, j] += sample(pyramid[level][n], at_y, at_x) / samples**2
    return out


def pooled(pyramid, boxes, present=None, convention="modern", size=3, samples=2):
    return roi_align(
        pyramid, boxes, present, strides=STRIDES, size=size, samples=samples, finest_scale=10.0,
        convention=convention,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
@pytest.mark.parametrize(("size", "samples"), [(3, 2), (2, 1), (1, 3)])
def test_equals_the_definition(convention, size, samples):
    pyramid, boxes = maps(), boxes_of_two_images()
    got = pooled([tf.constant(x) for x in pyramid], boxes, None, convention, size, samples)
    want = reference(pyramid, boxes, size, samples, 10.0, convention)
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences(monkeypatch):
    # A function that is linear in the maps: any step does. Several blocks, the last one not full.
    monkeypatch.setattr(portable, "FORWARD_NUMBERS", 5 * CHANNELS * 12**2)
    monkeypatch.setattr(portable, "BACKWARD_NUMBERS", 7 * CHANNELS * 12**2)
    pyramid, boxes = [tf.constant(x) for x in maps()], boxes_of_two_images()
    cotangent = np.random.default_rng(1).standard_normal((*boxes.shape[:2], 3, 3, CHANNELS))

    @tf.function
    def value_and_gradient(pyramid):
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            value = tf.reduce_sum(pooled(pyramid, boxes) * cotangent)
        return value, tape.gradient(value, pyramid)

    value, gradients = value_and_gradient(pyramid)
    rng = np.random.default_rng(2)
    for level, gradient in enumerate(gradients):
        assert np.abs(gradient).max() > 0.1
        for _ in range(4):
            step = np.zeros(gradient.shape)
            step[rng.integers(2), ...] = rng.standard_normal(gradient.shape[1:])
            moved = [x + step if i == level else x for i, x in enumerate(pyramid)]
            difference = value_and_gradient(moved)[0] - value
            np.testing.assert_allclose(difference, np.sum(gradient * step), rtol=1e-9)


def test_padding_gives_zeros_and_takes_no_gradient():
    pyramid, boxes = [tf.constant(x) for x in maps(np.float32)], boxes_of_two_images()
    present = np.zeros(boxes.shape[:2], bool)
    present[0, :3] = True
    with tf.GradientTape() as tape:
        tape.watch(pyramid)
        got = pooled(pyramid, boxes, present)
    gradients = tape.gradient(got, pyramid)
    np.testing.assert_array_equal(got[0, :3], pooled(pyramid, boxes)[0, :3])
    assert not np.any(got[0, 3:]) and not np.any(got[1])
    assert np.any(gradients[1][0]) and not any(np.any(g[1]) for g in gradients)
    assert pooled(pyramid, boxes[:, :0]).shape == (2, 0, 3, 3, CHANNELS)


def test_unknown_sizes_xla_and_half_precision_agree():
    pyramid, boxes = [tf.constant(x) for x in maps(np.float32)], boxes_of_two_images()

    def both(pyramid, boxes):
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            y = pooled(pyramid, boxes)
        return [y, *tape.gradient(y, pyramid, tf.cos(y))]

    boxes = tf.constant(boxes, tf.float32)
    eager = both(pyramid, boxes)
    unknown = [[tf.TensorSpec([None, None, None, CHANNELS])] * 2, tf.TensorSpec([None, None, 4])]
    for run in (tf.function(both, input_signature=unknown), tf.function(both, jit_compile=True)):
        for got, want in zip(run(pyramid, boxes), eager, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    for got, want in zip(both([tf.cast(x, tf.bfloat16) for x in pyramid], boxes), eager):
        assert got.dtype == tf.bfloat16
        scale = np.abs(want).max()
        np.testing.assert_allclose(tf.cast(got, tf.float32), want, rtol=0, atol=0.02 * scale)


def test_levels_change_exactly_at_the_powers_of_two():
    sides = np.array([1.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 5000.0, 0.0, -5.0, np.nan])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1).astype(np.float32)
    want = [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 0]
    np.testing.assert_array_equal(roi_levels(boxes, 4), want)
    # The sides of "mmdet1" count the last pixel.
    np.testing.assert_array_equal(roi_levels(boxes - [0, 0, 1, 1], 4, convention="mmdet1"), want)
    np.testing.assert_array_equal(roi_levels(boxes, 1), np.zeros(len(sides)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"strides": (4,)}, ValueError, "strides: expected one for each of 2 maps, got 1"),
        ({"size": 0}, ValueError, "at least 1; got size=0"),
        ({"convention": "old"}, ValueError, "convention must be one of"),
        ({"boxes": np.zeros([2, 4])}, ValueError, r"boxes: expected shape \[batch, boxes, 4\]"),
        ({"boxes": np.zeros([3, 1, 4])}, ValueError, "boxes: expected a batch of 2"),
        ({"present": np.ones([2, 3], bool)}, ValueError, "present: expected shape"),
        ({"pyramid": [np.zeros([2, 4, 4, 1], np.int32)] * 2}, TypeError, "floating type"),
        ({"pyramid": [np.zeros([2, 4, 4, c]) for c in (1, 2)]}, ValueError, "one known C"),
    ],
)
def test_what_does_not_fit_is_named(change, error, message):
    arguments = {"pyramid": maps(), "boxes": np.zeros([2, 1, 4]), "strides": STRIDES, **change}
    with pytest.raises(error, match=message):
        roi_align(**arguments)
