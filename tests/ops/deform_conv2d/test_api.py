"""deform_conv2d: types, unknown sizes, and which form is chosen."""

import numpy as np
import pytest
import tensorflow as tf
from deform_conv2d_problems import arguments, convolve, first_gradients

from sepc_tf.ops.deform_conv2d import (
    deform_conv2d,
    deform_conv2d_implementation,
    portable_ops,
)

X, OFFSET, KERNEL = tf.zeros([1, 5, 6, 4]), tf.zeros([1, 5, 6, 18]), tf.zeros([3, 3, 4, 2])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_half_precision_rounds_only_inputs_and_outputs(dtype, implementation):
    values = arguments(dtype, modulated=False)
    y = convolve(*values, implementation=implementation)
    assert y.dtype == dtype
    want = convolve(*[tf.cast(v, tf.float32) for v in values], implementation="xla")
    np.testing.assert_array_equal(tf.cast(y, tf.float32), tf.cast(tf.cast(want, dtype), "float32"))
    cotangent = tf.ones(y.shape, dtype)
    for gradient, value in zip(first_gradients(values, cotangent, implementation), values):
        assert gradient.dtype == value.dtype


@pytest.mark.parametrize("implementation", ["xla", "native"])
def test_sizes_may_be_unknown_while_tracing(implementation, request):
    if implementation == "native":
        request.getfixturevalue("native_or_skip")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 4]),
            tf.TensorSpec([None, None, None, 36]),
            tf.TensorSpec([3, 3, 2, 6]),
        ]
    )
    def run(x, offset, kernel):
        with tf.GradientTape() as tape:
            tape.watch([x, offset, kernel])
            y = convolve(x, offset, kernel, implementation=implementation)
        assert y.shape.as_list() == [None, None, None, 6]
        return y, tape.gradient(y, [x, offset, kernel])

    values = arguments("float32", modulated=False)
    y, gradients = run(*values)
    np.testing.assert_allclose(y, convolve(*values), rtol=0, atol=1e-5)
    for got, want in zip(gradients, first_gradients(values, tf.ones(y.shape), "xla")):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="offset: expected"):
        run(values[0], values[1][:, :2], values[2])


def test_an_empty_batch_gives_an_empty_output():
    y = deform_conv2d(tf.zeros([0, 4, 4, 2]), tf.zeros([0, 4, 4, 18]), tf.ones([3, 3, 2, 5]))
    assert y.shape == (0, 4, 4, 5)


class TestChoice:
    def test_native_where_it_can_be(self, native_or_skip):
        if tf.config.get_visible_devices("GPU"):
            pytest.skip("an accelerator takes the portable form")
        assert deform_conv2d_implementation() == "native"
        assert deform_conv2d_implementation(dtype=tf.bfloat16) == "native"

    def test_portable_in_float64(self):
        assert deform_conv2d_implementation(dtype=tf.float64) == "xla"
        with pytest.raises(ValueError, match="no float64 form"):
            deform_conv2d_implementation("native", tf.float64)

    def test_portable_within_the_context(self):
        with portable_ops():
            assert deform_conv2d_implementation() == "xla"
            assert deform_conv2d_implementation("native") == "xla"

    def test_under_xla_native_where_the_shapes_are_known(self, native_or_skip):
        seen = {}

        @tf.function(jit_compile=True)
        def outer(x, known):
            return inner(x, known)

        @tf.function
        def inner(x, known):
            seen[known] = deform_conv2d_implementation(known_shapes=known)
            if not known:
                with pytest.raises(ValueError, match=r"XLA compiles.*shapes not known"):
                    deform_conv2d_implementation("native", known_shapes=False)
            return x

        outer(tf.ones([]), True)
        outer(tf.ones([]), False)
        assert seen == {True: "native", False: "xla"}

    def test_under_xla_each_call_takes_what_its_shapes_allow(self, native_or_skip):
        def call(x):
            return deform_conv2d(x, tf.zeros([*tf.unstack(tf.shape(x)[:3]), 18]), KERNEL)

        names = []
        for height in (5, None):
            spec = tf.TensorSpec([1, height, 6, 4])
            function = tf.function(call, jit_compile=True).get_concrete_function(spec)
            operations = function.graph.get_operations()
            names.append("XlaCustomCallV2" in {operation.type for operation in operations})
            np.testing.assert_array_equal(function(X), tf.zeros([1, 5, 6, 2]))
        assert names == [True, False]

    def test_exported_under_the_context_holds_only_tensorflow_operations(self, tmp_path):
        module = tf.Module()
        signature = [tf.TensorSpec([1, None, None, 4])]
        module.serve = tf.function(
            lambda x: deform_conv2d(x, tf.zeros([1, 5, 6, 18]), tf.ones([3, 3, 4, 2])),
            input_signature=signature,
        )
        with portable_ops():
            tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
        assert b"SepcDeformConv2D" not in (tmp_path / "saved_model.pb").read_bytes()
        again = tf.saved_model.load(str(tmp_path))
        np.testing.assert_array_equal(again.serve(X), tf.zeros([1, 5, 6, 2]))
