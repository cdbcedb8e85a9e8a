"""The entry point of the deformable convolution, and the table of its forms."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import tensorflow as tf

from sepc_tf.ops.deform_conv2d import native, portable, unrolled
from sepc_tf.ops.deform_conv2d.geometry import checked_arguments


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to compute the convolution.

    Attributes:
        run: function of (arguments, geometry) -> `[N, Ho, Wo, D]`, the arguments being x, offset,
            kernel and, for DCNv2, mask, all float32 or all float64.
        obstacle: function of (dtype, known_shapes) -> why a call that is made here cannot be
            computed by this form, or None.
        require: function that raises where something that the form needs is missing; called where
            the form is asked for by name.
        preferred: function that tells whether "auto" takes the form where it has no obstacle.
    """

    run: Callable
    obstacle: Callable = lambda dtype, known_shapes: None
    require: Callable = lambda: None
    preferred: Callable = lambda: True


# "auto" takes the first one that has no obstacle and is preferred.
FORMS = {
    "native": Form(native.run, native.obstacle, native.require, native.preferred),
    "xla": Form(portable.run),
    "unrolled": Form(unrolled.run, unrolled.obstacle, preferred=lambda: False),
}
IMPLEMENTATIONS = ("auto", *FORMS)


def deform_conv2d(
    x: tf.Tensor,
    offset: tf.Tensor,
    kernel: tf.Tensor,
    *,
    mask: tf.Tensor | None = None,
    strides: int | tuple[int, int] = 1,
    padding: str | int | tuple[tuple[int, int], tuple[int, int]] = "same",
    dilations: int | tuple[int, int] = 1,
    groups: int = 1,
    offset_groups: int = 1,
    implementation: str = "auto",
) -> tf.Tensor:
    """Convolution whose taps are displaced by a field of offsets.

    For output pixel `p`, tap `k` at grid position `g_k` and its offset `o_k(p) = (dy, dx)`:

        y[p] = sum_k mask_k(p) * W_k^T x(p * stride - padding + g_k * dilation + o_k(p))

    where `x(.)` is bilinear: a sample at `y <= -1`, `y >= H`, `x <= -1` or `x >= W` is 0, and a
    single neighbour outside the map counts as 0. At an integer position the derivative is the one
    to the right, `value(floor + 1) - value(floor)`. Samples at NaN or infinite positions are 0 and
    have no gradient.

    Sums are accumulated in float32 for half-precision inputs. Differentiable, also twice.

    Args:
        x: `[N, H, W, C]` features; float16, bfloat16, float32 or float64. `N`, `H` and `W` may be
            unknown while tracing.
        offset: `[N, Ho, Wo, 2 * offset_groups * kh * kw]` displacements in pixels of `x`. Channel
            `2 * (g * kh * kw + i * kw + j)` is dy of tap `(i, j)` for offset group `g`, the next
            one is dx. Any floating type (positions are computed in float32, or in float64 when `x`
            is).
        kernel: `[kh, kw, C / groups, D]`.
        mask: None (DCNv1) or `[N, Ho, Wo, offset_groups * kh * kw]` factors of the samples (DCNv2),
            channel `g * kh * kw + i * kw + j`; used as given, without a sigmoid.
        strides: int or (vertical, horizontal).
        padding: "same" (as `tf.nn.conv2d`), "valid", an int (the same on every side, as PyTorch)
            or ((top, bottom), (left, right)).
        dilations: int or (vertical, horizontal).
        groups: output group `g` sees the input channels `[g C/groups, (g+1) C/groups)`.
        offset_groups: offset group `g` moves the input channels `[g C/G, (g+1) C/G)`.
        implementation: "auto", "xla", "native" or "unrolled"; see `deform_conv2d_implementation`.

    Returns:
        `[N, Ho, Wo, D]`, of the type of `x`. No bias is added.

    Raises:
        ValueError: a shape, rank or setting does not fit; the message names the argument, what was
            expected and what came.
        TypeError: `x` is not floating.
        tf.errors.InvalidArgumentError: sizes unknown while tracing turn out not to fit.

    Example:
        >>> x = tf.random.normal([1, 50, 84, 256])
        >>> kernel = tf.random.normal([3, 3, 256, 256])
        >>> deform_conv2d(x, tf.zeros([1, 50, 84, 18]), kernel).shape
        TensorShape([1, 50, 84, 256])

    Source: Dai et al., Deformable Convolutional Networks (arXiv 1703.06211, section 2.1); Zhu et
    al., Deformable ConvNets v2 (arXiv 1811.11168, section 3.2).
    """
    x, offset, kernel, mask, geometry = checked_arguments(
        x, offset, kernel, mask, strides, padding, dilations, groups, offset_groups
    )
    compute_type = tf.float64 if x.dtype == tf.float64 else tf.float32
    arguments = [
        tf.cast(value, compute_type) for value in (x, offset, kernel, mask) if value is not None
    ]
    known_shapes = all(value.shape.num_elements() for value in arguments)  # and not empty
    form = FORMS[deform_conv2d_implementation(implementation, compute_type, known_shapes)]
    return tf.cast(form.run(arguments, geometry), x.dtype)


def deform_conv2d_implementation(
    implementation: str = "auto", dtype: tf.DType = tf.float32, known_shapes: bool = True
) -> str:
    """The form `deform_conv2d` takes if it is called here.

    "auto" is native on a machine without accelerators, where the C++ library is (or can be) built,
    for every type but float64, unless the call is being saved in a SavedModel, is within
    `portable_ops`, or is being compiled by XLA with shapes that are not all known while tracing;
    it is the portable form elsewhere. "unrolled" is the portable form without loops and inner
    functions, for graphs that other runtimes shall run. The environment variable `SEPC_TF_NATIVE`
    decides first: "0" never uses the library, "1" makes its absence an error.

    Args:
        implementation: "auto", "xla", "native" or "unrolled".
        dtype: type of the features.
        known_shapes: whether the shapes of all arguments are known while tracing.

    Returns:
        "xla", "native" or "unrolled".

    Raises:
        ValueError: another name, or "native" for a type, a device or a context without it.
        sepc_tf.ops.native.NativeUnavailableError: "native" where the library cannot be built.

    Example:
        >>> deform_conv2d_implementation(dtype=tf.float64)
        'xla'
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation: expected one of {IMPLEMENTATIONS}, got {implementation!r}"
        )
    if _imposed.get():
        return _imposed.get()
    if implementation == "auto":
        return next(
            name
            for name, form in FORMS.items()
            if not form.obstacle(dtype, known_shapes) and form.preferred()
        )
    form = FORMS[implementation]
    obstacle = form.obstacle(dtype, known_shapes)
    if obstacle:
        raise ValueError(
            f'implementation: "{implementation}" cannot be used: {obstacle}; use "auto"'
        )
    form.require()
    return implementation


_imposed = contextvars.ContextVar("imposed_form", default=None)


@contextlib.contextmanager
def portable_ops(form: str = "xla") -> Iterator[None]:
    """Within this context `deform_conv2d` takes a portable form, whatever is asked for.

    For functions that are traced to be exported: the graph then holds TensorFlow's own operations
    only.

    Args:
        form: "xla", or "unrolled" for a graph that something else than TensorFlow shall run.

    Example:
        >>> with portable_ops():
        ...     deform_conv2d_implementation()
        'xla'
    """
    token = _imposed.set(form)
    try:
        yield
    finally:
        _imposed.reset(token)
