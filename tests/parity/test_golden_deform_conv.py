"""The deformable convolution against the authors' outputs and gradients (golden data)."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops import native
from sepc_tf.ops.deform_conv2d import deform_conv2d

CASES = [
    "d2p2",
    "s1p0",
    "s1p0_tiny",
    "s1p1",
    "s1p1_dg2_b2",
    "s1p1_far",
    "s1p1_int",
    "s1p1_zero",
    "s2p1_even",
    "s2p1_int",
    "s2p1_mixed_dg2",
    "s2p1_odd",
]
# Largest difference allowed, relative to the largest value of the array.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recipe(golden_dir):
    sys.path.insert(0, str(golden_dir))
    try:
        import recipe
    finally:
        sys.path.pop(0)
    return recipe


def to_nhwc(array):
    return tf.constant(array.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("implementation", "mode"),
    [("xla", "eager"), ("xla", "graph"), ("xla", "compiled"), ("native", "graph")],
)
@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_equal_the_authors(recipe, name, implementation, mode):
    if implementation == "native" and not native.available():
        pytest.skip("no compiler for the C++ operations, or SEPC_TF_NATIVE=0")
    case = recipe.load_case(f"deform_conv_{name}")
    inputs = {key.split(".")[-1]: value for key, value in case.inputs().items()}
    config = case.config
    x, offset, cotangent = (to_nhwc(inputs[key]) for key in ("x", "offset", "cot"))
    kernel = tf.constant(inputs["weight"].transpose(2, 3, 1, 0))

    def run(x, offset, kernel, cotangent):
        with tf.GradientTape() as tape:
            tape.watch([x, offset, kernel])
            y = deform_conv2d(
                x,
                offset,
                kernel,
                strides=config["stride"],
                padding=config["padding"],
                dilations=config["dilation"],
                groups=config["groups"],
                offset_groups=config["deformable_groups"],
                implementation=implementation,
            )
        return y, *tape.gradient(y, [x, offset, kernel], cotangent)

    if mode != "eager":
        run = tf.function(run, jit_compile=mode == "compiled")
    y, grad_x, grad_offset, grad_kernel = (t.numpy() for t in run(x, offset, kernel, cotangent))
    got = {
        "out.y": y.transpose(0, 3, 1, 2),
        "out.grad_x": grad_x.transpose(0, 3, 1, 2),
        "out.grad_offset": grad_offset.transpose(0, 3, 1, 2),
        "out.grad_weight": grad_kernel.transpose(3, 2, 0, 1),
    }
    for key, array in got.items():
        want = case.data[key]
        np.testing.assert_allclose(array, want, rtol=0, atol=TOLERANCE * np.abs(want).max())
