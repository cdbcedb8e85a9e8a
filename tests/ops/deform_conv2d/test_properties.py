"""Properties of the deformable convolution over random shapes and settings (hypothesis)."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from sepc_tf.ops import native
from sepc_tf.ops.deform_conv2d import deform_conv2d

IMPLEMENTATIONS = ["xla", "native"]
# More channels and outputs than the C++ kernel takes at a time (kDepth), seldom whole vectors.
WIDE = {"channels": (186, 702), "largest_side": 5, "outputs": (50, 300)}
modest = settings(deadline=None, max_examples=8)
few = settings(deadline=None, max_examples=4)


@pytest.fixture(params=IMPLEMENTATIONS, scope="module")
def implementation(request):
    if request.param == "native" and not native.available():
        pytest.skip("no compiler for the C++ operations, or SEPC_TF_NATIVE=0")
    return request.param


@st.composite
def problems(draw, channels=(6, 18), largest_side=12, outputs=(1, 9)):
    """Settings and shapes of one call, with the output size.

    The channels are a multiple of 6, `outputs` are those of each group.
    """
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    groups, offset_groups = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 3), (3, 3)]))
    channels = 6 * draw(st.integers(channels[0] // 6, channels[1] // 6))
    size = draw(st.tuples(*[st.integers(1, largest_side)] * 2))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    sides = [(draw(st.integers(0, 2)), max(0, e - s) + draw(st.integers(0, 2)))
             for e, s in zip(extent, size)]  # fmt: skip
    padding = draw(st.sampled_from(["same", tuple(sides)]))
    if padding == "same":
        out = [-(-s // stride) for s, stride in zip(size, strides)]
    else:
        out = [
            (s + sum(p) - e) // stride + 1 for s, p, e, stride in zip(size, sides, extent, strides)
        ]
    return {
        "x": (draw(st.integers(1, 2)), *size, channels),
        "out": tuple(out),
        "kernel": (*kernel, channels // groups, groups * draw(st.integers(*outputs))),
        "fields": offset_groups * kernel[0] * kernel[1],
        "seed": draw(st.integers(0, 1000)),
        "options": {
            "strides": strides,
            "padding": padding,
            "dilations": dilations,
            "groups": groups,
            "offset_groups": offset_groups,
        },
    }


def tensors(problem, scale=0.0, whole=False):
    """x, offset (normal times `scale`, rounded if `whole`) and kernel of a problem.

    The outputs of a wide problem are about 1 too.
    """
    rng = np.random.default_rng(problem["seed"])
    x = rng.standard_normal(problem["x"])
    kernel = rng.standard_normal(problem["kernel"])
    if x.shape[-1] > 18:
        kernel /= np.sqrt(np.prod(kernel.shape[:3]))
    shape = (problem["x"][0], *problem["out"], 2 * problem["fields"])
    offset = rng.standard_normal(shape) * scale
    offset = np.round(offset) if whole else offset
    return [tf.constant(value, tf.float32) for value in (x, offset, kernel)]


def reference(x, offset, kernel, mask, options):
    """The definition, written with plain loops in float64."""
    x, offset, kernel = (np.asarray(value, np.float64) for value in (x, offset, kernel))
    batch, height, width, channels = x.shape
    kernel_h, kernel_w, _, outputs = kernel.shape
    out_h, out_w = offset.shape[1:3]
    groups, offset_groups = options["groups"], options["offset_groups"]
    (stride_y, stride_x), (dilation_y, dilation_x) = options["strides"], options["dilations"]
    if options["padding"] == "same":
        top = max(0, (out_h - 1) * stride_y + (kernel_h - 1) * dilation_y + 1 - height) // 2
        left = max(0, (out_w - 1) * stride_x + (kernel_w - 1) * dilation_x + 1 - width) // 2
    else:
        top, left = options["padding"][0][0], options["padding"][1][0]
    offset = offset.reshape(batch, out_h, out_w, offset_groups, kernel_h, kernel_w, 2)
    mask = np.asarray(mask, np.float64).reshape(offset.shape[:-1])
    y = np.zeros((batch, out_h, out_w, outputs))
    for n, i, j, g, a, b in np.ndindex(*offset.shape[:-1]):
        at_y = i * stride_y - top + a * dilation_y + offset[n, i, j, g, a, b, 0]
        at_x = j * stride_x - left + b * dilation_x + offset[n, i, j, g, a, b, 1]
        if not (-1 < at_y < height and -1 < at_x < width):
            continue
        y0, x0 = int(np.floor(at_y)), int(np.floor(at_x))
        inputs = slice(g * channels // offset_groups, (g + 1) * channels // offset_groups)
        sample = np.zeros(channels)
        for row, weight_y in ((y0, 1 - (at_y - y0)), (y0 + 1, at_y - y0)):
            for column, weight_x in ((x0, 1 - (at_x - x0)), (x0 + 1, at_x - x0)):
                if 0 <= row < height and 0 <= column < width:
                    sample[inputs] += weight_y * weight_x * x[n, row, column, inputs]
        sample *= mask[n, i, j, g, a, b]
        for group in range(groups):
            c = slice(group * channels // groups, (group + 1) * channels // groups)
            d = slice(group * outputs // groups, (group + 1) * outputs // groups)
            y[n, i, j, d] += sample[c] @ kernel[a, b, :, d]
    return y


def assert_equals_the_definition(implementation, problem, scale):
    x, offset, kernel = tensors(problem, scale)
    rng = np.random.default_rng(problem["seed"] + 1)
    mask = tf.constant(rng.uniform(size=(*offset.shape[:3], problem["fields"])), tf.float32)
    y = deform_conv2d(
        x, offset, kernel, mask=mask, implementation=implementation, **problem["options"]
    )
    want = reference(x, offset, kernel, mask, problem["options"])
    np.testing.assert_allclose(y, want, rtol=0, atol=2e-4)


@modest
@given(problem=problems(), scale=st.sampled_from([0.3, 2.0, 8.0]))
def test_equals_the_definition(implementation, problem, scale):
    assert_equals_the_definition(implementation, problem, scale)


@few
@given(problem=problems(**WIDE), scale=st.sampled_from([0.3, 2.0]))
def test_equals_the_definition_with_many_channels(implementation, problem, scale):
    assert_equals_the_definition(implementation, problem, scale)


@modest
@given(problem=problems())
def test_zero_offsets_equal_a_convolution(implementation, problem):
    x, offset, kernel = tensors(problem)
    y = deform_conv2d(x, offset, kernel, implementation=implementation, **problem["options"])
    options = problem["options"]
    padding = options["padding"]
    if padding == "same":
        # TensorFlow's dilated convolutions on the CPU know no strides: pad, dilate the kernel.
        sides = []
        for axis in (0, 1):
            extent = (kernel.shape[axis] - 1) * options["dilations"][axis] + 1
            out, stride = problem["out"][axis], options["strides"][axis]
            total = max(0, (out - 1) * stride + extent - problem["x"][axis + 1])
            sides.append((total // 2, total - total // 2))
        padding = sides
    dilated = np.zeros(
        [(k - 1) * d + 1 for k, d in zip(kernel.shape[:2], options["dilations"])]
        + list(kernel.shape[2:]),
        np.float32,
    )
    dilated[:: options["dilations"][0], :: options["dilations"][1]] = kernel
    padded = tf.pad(x, [(0, 0), *padding, (0, 0)])
    groups = options["groups"]
    parts = [
        tf.nn.conv2d(a, b, options["strides"], "VALID")
        for a, b in zip(tf.split(padded, groups, -1), tf.split(dilated, groups, -1))
    ]
    np.testing.assert_allclose(y, tf.concat(parts, -1), rtol=0, atol=1e-4)


@modest
@given(
    shift=st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 20),
)
def test_whole_offsets_shift_the_map(implementation, shift, size, channels):
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((1, *size, channels)).astype(np.float32)
    kernel = tf.constant(rng.standard_normal((3, 3, channels, 4)), tf.float32)
    # Translated by `-shift`, zeros coming in: the map read at p + shift.
    margin = 4
    padded = np.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    rows = slice(margin + shift[0] - 1, margin + shift[0] + size[0] + 1)
    columns = slice(margin + shift[1] - 1, margin + shift[1] + size[1] + 1)
    want = tf.nn.conv2d(padded[:, rows, columns], kernel, 1, "VALID")
    offset = tf.tile(tf.constant(shift, tf.float32)[None, None, None], [1, *size, 9])
    y = deform_conv2d(x, offset, kernel, implementation=implementation)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-4)


@modest
@given(shift=st.tuples(st.integers(0, 3), st.integers(0, 3)), seed=st.integers(0, 100))
def test_a_translated_input_gives_a_translated_output(implementation, shift, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, 6, 7, 3)).astype(np.float32)
    offset = rng.standard_normal((1, 6, 7, 18)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 3, 2)).astype(np.float32)

    def placed(array, top, left):
        """The array inside zeros, far enough from the border for every sample."""
        sides = [(0, 0), (8 + top, 12 - top), (8 + left, 12 - left), (0, 0)]
        return tf.constant(np.pad(array, sides))

    y = [
        deform_conv2d(placed(x, *at), placed(offset, *at), kernel, implementation=implementation)
        for at in ((0, 0), shift)
    ]
    translated = tf.roll(y[0], shift, axis=(1, 2))
    # Positions differ in their last float32 bits.
    np.testing.assert_allclose(y[1], translated, rtol=0, atol=1e-4)


@modest
@given(
    problem=problems(),
    far=st.sampled_from([1e3, -1e3, 1e9, -1e9, 3e38, -3e38, np.inf, -np.inf, np.nan]),
)
def test_far_samples_are_zero_and_have_no_gradient(implementation, problem, far):
    x, offset, kernel = tensors(problem)
    offset = tf.fill(offset.shape, tf.constant(far, tf.float32))
    with tf.GradientTape() as tape:
        tape.watch([x, offset, kernel])
        y = deform_conv2d(x, offset, kernel, implementation=implementation, **problem["options"])
    for value in (y, *tape.gradient(y, [x, offset, kernel])):
        np.testing.assert_array_equal(value, np.zeros(value.shape))


@modest
@given(problem=problems(), bad=st.sampled_from([1e30, -1e30, np.inf, np.nan]))
def test_a_wild_offset_changes_only_its_own_pixel(implementation, problem, bad):
    x, offset, kernel = tensors(problem, scale=1.0)
    wild = np.array(offset)
    wild[0, 0, 0, 0] = bad
    pair = [
        deform_conv2d(x, o, kernel, implementation=implementation, **problem["options"]).numpy()
        for o in (offset, wild)
    ]
    assert np.isfinite(pair[1]).all()
    pair[0][0, 0, 0], pair[1][0, 0, 0] = 0, 0
    np.testing.assert_array_equal(pair[0], pair[1])


@modest
@given(problem=problems(), whole=st.booleans())
def test_forms_agree_on_gradients(native_or_skip, problem, whole):
    values = tensors(problem, scale=2.0, whole=whole)
    for portable, fused in zip(*(gradients(values, problem, form) for form in IMPLEMENTATIONS)):
        np.testing.assert_allclose(fused, portable, rtol=0, atol=5e-4)


@few
@given(problem=problems(**WIDE), whole=st.booleans())
def test_gradients_of_the_native_form_with_many_channels(native_or_skip, problem, whole):
    values = tensors(problem, scale=1.0, whole=whole)
    precise = gradients([tf.cast(value, tf.float64) for value in values], problem, "xla")
    for want, got in zip(precise, gradients(values, problem, "native")):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))


@modest
@given(problem=problems(), whole=st.booleans())
def test_the_native_form_is_the_same_inside_xla(native_or_skip, problem, whole):
    values = tensors(problem, scale=2.0, whole=whole)
    compiled = tf.function(gradients, jit_compile=True)(values, problem, "native")
    for inside, outside in zip(compiled, gradients(values, problem, "native")):
        np.testing.assert_array_equal(inside, outside)


def gradients(values, problem, form):
    """The output and the gradients by `values`."""
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = deform_conv2d(*values, implementation=form, **problem["options"])
    cotangent = np.random.default_rng(problem["seed"] + 2).standard_normal(y.shape)
    return y, *tape.gradient(y, values, tf.cast(cotangent.astype("float32"), y.dtype))
