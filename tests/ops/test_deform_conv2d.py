"""deform_conv2d: gradients by finite differences, forms against each other, errors, choice."""

import functools
import importlib

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops import native
from sepc_tf.ops.deform_conv2d import (
    deform_conv2d,
    deform_conv2d_implementation,
    portable_ops,
)


@pytest.fixture
def native_or_skip():
    if not native.available():
        pytest.skip("no compiler for the C++ operations, or SEPC_TF_NATIVE=0")


def arguments(dtype="float64", modulated=True, seed=0):
    """x [2, 5, 6, 4], offsets of 2 groups, kernel of 2 groups, mask: strides 2, padding 1."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 5, 6, 4))
    # Away from integer positions, where the derivative jumps.
    offset = np.round(rng.uniform(-3, 3, (2, 3, 3, 36))) + rng.uniform(0.1, 0.9, (2, 3, 3, 36))
    kernel = rng.standard_normal((3, 3, 2, 6))
    mask = rng.uniform(0, 1, (2, 3, 3, 18))
    values = [x, offset, kernel, mask] if modulated else [x, offset, kernel]
    return [tf.constant(value, dtype) for value in values]


def convolve(x, offset, kernel, mask=None, implementation="auto"):
    return deform_conv2d(
        x,
        offset,
        kernel,
        mask=mask,
        strides=2,
        padding=1,
        groups=2,
        offset_groups=2,
        implementation=implementation,
    )


def test_gradients_equal_finite_differences():
    theory, numeric = tf.test.compute_gradient(tf.function(convolve), arguments(), delta=1e-5)
    for by_theory, by_difference in zip(theory, numeric):
        np.testing.assert_allclose(by_theory, by_difference, rtol=0, atol=1e-7)


def first_gradients(values, cotangent, implementation):
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = convolve(*values, implementation=implementation)
    return tape.gradient(y, values, cotangent)


def small(dtype):
    """A problem small enough for second derivatives: x [1, 3, 3, 2], one tap, mask."""
    rng = np.random.default_rng(2)
    shapes = [(1, 3, 3, 2), (1, 3, 3, 2), (1, 1, 2, 2), (1, 3, 3, 1)]
    values = [rng.uniform(0.1, 0.9, shape) for shape in shapes]
    return [tf.constant(value, dtype) for value in values]


def squared_gradients(x, offset, kernel, mask, implementation):
    """A scalar made of first derivatives, so that its gradient holds second ones."""
    values = [x, offset, kernel, mask]
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = deform_conv2d(x, offset, kernel, mask=mask, implementation=implementation)
        loss = tf.reduce_sum(y**2)
    return tf.add_n([tf.reduce_sum(g**2) for g in tape.gradient(loss, values)])


def test_second_order_equals_finite_differences():
    function = functools.partial(squared_gradients, implementation="xla")
    theory, numeric = tf.test.compute_gradient(function, small("float64"), delta=1e-6)
    for by_theory, by_difference in zip(theory, numeric):
        np.testing.assert_allclose(by_theory, by_difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_second_order_of_the_native_form(native_or_skip, compiled):
    values = small("float32")

    def gradient(implementation):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = squared_gradients(*values, implementation=implementation)
        return tape.gradient(loss, values)

    of_native = tf.function(lambda: gradient("native"), jit_compile=True) if compiled else None
    for want, got in zip(gradient("xla"), of_native() if compiled else gradient("native")):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_native_equals_portable_with_groups_and_mask(native_or_skip):
    values = arguments("float32")
    cotangent = tf.constant(np.random.default_rng(1).standard_normal((2, 3, 3, 6)), "float32")
    want = [
        convolve(*values, implementation="xla"),
        *first_gradients(values, cotangent, "xla"),
    ]
    got = [
        convolve(*values, implementation="native"),
        *first_gradients(values, cotangent, "native"),
    ]
    for native_value, portable_value in zip(got, want):
        np.testing.assert_allclose(native_value, portable_value, rtol=0, atol=2e-5)


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


@pytest.mark.parametrize("pixels_per_block", [1, 3, 4, 11])
def test_the_portable_form_does_not_depend_on_its_blocks(pixels_per_block, monkeypatch):
    module = importlib.import_module("sepc_tf.ops.deform_conv2d")
    monkeypatch.setattr(module, "BLOCK_NUMBERS", pixels_per_block * 9 * 4)
    module._portable_function.cache_clear()
    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((1, 1, 11, 4)))  # 11 pixels: blocks with padding
    kernel = tf.constant(rng.standard_normal((3, 3, 4, 2)))
    upstream = rng.standard_normal((1, 1, 11, 2))
    results = []
    for offset in (None, tf.zeros([1, 1, 11, 18], tf.float64)):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            if offset is None:
                y = tf.nn.conv2d(x, kernel, 1, "SAME")
            else:
                y = deform_conv2d(x, offset, kernel, implementation="xla")
        results.append([y, *tape.gradient(y, [x, kernel], upstream)])
    values = arguments()
    cotangent = tf.constant(rng.standard_normal((2, 3, 3, 6)))
    in_small_blocks = first_gradients(values, cotangent, "xla")
    monkeypatch.undo()
    module._portable_function.cache_clear()
    results[0] += first_gradients(values, cotangent, "xla")
    results[1] += in_small_blocks
    for expected, got in zip(*results):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_an_empty_batch_gives_an_empty_output():
    y = deform_conv2d(tf.zeros([0, 4, 4, 2]), tf.zeros([0, 4, 4, 18]), tf.ones([3, 3, 2, 5]))
    assert y.shape == (0, 4, 4, 5)


X, OFFSET, KERNEL = tf.zeros([1, 5, 6, 4]), tf.zeros([1, 5, 6, 18]), tf.zeros([3, 3, 4, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": tf.zeros([5, 6, 4])}, "x: expected a tensor of rank 4"),
        ({"offset": tf.zeros([1, 5, 6, 17])}, r"offset: expected shape \(1, 5, 6, 18\).*17"),
        ({"offset": tf.zeros([1, 6, 5, 18])}, r"offset: expected shape \(1, 5, 6, 18\)"),
        ({"offset": tf.zeros([2, 5, 6, 18])}, r"offset: expected shape \(1, 5, 6, 18\)"),
        ({"kernel": tf.zeros([3, 3, 3, 2])}, "kernel: expected 4 input channels"),
        ({"kernel": tf.zeros([3, 3, 2, 3]), "groups": 2}, "kernel: expected a number of outputs"),
        ({"mask": tf.zeros([1, 5, 6, 18])}, r"mask: expected shape \(1, 5, 6, 9\)"),
        ({"groups": 3}, "groups: expected a positive divisor of the 4 channels"),
        ({"offset_groups": 0}, "offset_groups: expected a positive divisor"),
        ({"strides": 0}, "strides: expected a positive int"),
        ({"dilations": (1, 2, 3)}, "dilations: expected a positive int"),
        ({"padding": "full"}, 'padding: expected "same"'),
        ({"padding": -1}, 'padding: expected "same"'),
        ({"padding": "valid", "dilations": 4}, "x: expected a map at least as large"),
        ({"implementation": "cuda"}, "implementation: expected one of"),
    ],
)
def test_misfits_name_the_argument(changes, message):
    values = {"x": X, "offset": OFFSET, "kernel": KERNEL, **changes}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(values.pop("x"), values.pop("offset"), values.pop("kernel"), **values)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="x: expected a floating type, got int32"):
        deform_conv2d(tf.zeros([1, 5, 6, 4], tf.int32), OFFSET, KERNEL)


def test_the_kernel_itself_refuses_what_tracing_could_not_see(native_or_skip):
    with pytest.raises(tf.errors.InvalidArgumentError, match="offset: expected shape"):
        native.load().sepc_deform_conv2d(
            x=X,
            offset=OFFSET[:, :4],
            mask=tf.zeros([0]),
            kernel=KERNEL,
            strides=[1, 1],
            paddings=[],
            dilations=[1, 1],
            groups=1,
            offset_groups=1,
            modulated=False,
        )


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
