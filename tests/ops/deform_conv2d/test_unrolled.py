"""The unrolled form equals the portable one, which the golden data is compared with."""

import numpy as np
import pytest
import tensorflow as tf
from deform_conv2d_problems import arguments, convolve, first_gradients

from sepc_tf.ops.deform_conv2d import deform_conv2d, portable_ops

pytestmark = pytest.mark.same_on_both_stacks


@pytest.mark.parametrize("modulated", [False, True])
def test_groups_strides_and_masks(modulated):
    values = arguments(modulated=modulated)
    expected = convolve(*values, implementation="xla")
    found = convolve(*values, implementation="unrolled")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    cotangent = tf.ones_like(expected)
    for one, other in zip(
        first_gradients(values, cotangent, "unrolled"), first_gradients(values, cotangent, "xla")
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "options"),
    [
        (0.0, {}),
        (2.0, {}),
        (50.0, {"padding": ((0, 2), (1, 0)), "dilations": (2, 1)}),
        (3.0, {"padding": "valid", "strides": (1, 2)}),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_every_position_inside_and_outside(scale, options, whole):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((2, 7, 9, 3)), tf.float32)
    kernel = tf.constant(rng.standard_normal((3, 3, 3, 4)), tf.float32)
    shape = deform_shape(x, kernel, options)
    offset = rng.standard_normal(shape) * scale
    offset = tf.constant(np.round(offset) if whole else offset, tf.float32)
    found, expected = (
        deform_conv2d(x, offset, kernel, implementation=form, **options)
        for form in ("unrolled", "xla")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def deform_shape(x, kernel, options):
    """Of the offsets, from a convolution of the same settings."""
    padding = options.get("padding", "SAME")
    if not isinstance(padding, str):
        padding = [[0, 0], *map(list, padding), [0, 0]]
    else:
        padding = padding.upper()
    y = tf.nn.conv2d(
        x, kernel, options.get("strides", 1), padding, dilations=options.get("dilations", 1)
    )
    return (*y.shape[:3], 18)


def test_the_graph_has_neither_loops_nor_functions():
    def call(x, offset, kernel):
        with portable_ops("unrolled"):
            return deform_conv2d(x, offset, kernel)

    shapes = [1, 8, 9, 4], [1, 8, 9, 18], [3, 3, 4, 5]
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    graph = tf.function(call, autograph=False).get_concrete_function(*specs).graph.as_graph_def()
    kinds = [node.op for node in graph.node]
    assert not len(graph.library.function)
    assert kinds.count("GatherV2") == 4
    assert not {"While", "StatelessWhile", "PartitionedCall"} & {*kinds}


def test_it_needs_known_shapes():
    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 2], tf.float32)])
    def call(x):
        offset = tf.zeros([tf.shape(x)[0], 8, 8, 18])
        return deform_conv2d(x, offset, tf.ones([3, 3, 2, 2]), implementation="unrolled")

    with pytest.raises(ValueError, match="needs shapes that are known while tracing"):
        call(tf.zeros([1, 8, 8, 2]))
