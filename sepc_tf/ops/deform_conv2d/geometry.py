"""The geometry of one deformable convolution, and the checks of its arguments.

Letters used for shapes in this package: batch `N`, input map `H x W` with `C` channels, output map
`Ho x Wo` with `D` channels, kernel `kh x kw` with `K = kh * kw` taps, `G` offset groups, of `C / G`
channels each.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The static settings of one deformable convolution; `paddings` is None for TF's SAME."""

    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    paddings: tuple[tuple[int, int], tuple[int, int]] | None
    dilations: tuple[int, int]
    groups: int
    offset_groups: int

    @property
    def taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    def axis(self, axis, size):
        """Returns (output size, padding before) along axis 0 (height) or 1 (width).

        `size` is an int or an int32 scalar tensor.
        """
        extent = (self.kernel_size[axis] - 1) * self.dilations[axis] + 1
        stride = self.strides[axis]
        if self.paddings is None:
            out = (size + stride - 1) // stride
            total = (out - 1) * stride + extent - size
            total = max(total, 0) if isinstance(total, int) else tf.maximum(total, 0)
            return out, total // 2
        before, after = self.paddings[axis]
        return (size + before + after - extent) // stride + 1, before


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of one call: ints where known while tracing, int32 scalars elsewhere."""

    batch: int | tf.Tensor
    height: int | tf.Tensor
    width: int | tf.Tensor
    channels: int
    out_height: int | tf.Tensor
    out_width: int | tf.Tensor
    padding_top: int | tf.Tensor
    padding_left: int | tf.Tensor

    @property
    def pixels(self) -> int | tf.Tensor:
        return self.batch * self.out_height * self.out_width


def sizes_of(x: tf.Tensor, geometry: Geometry) -> Sizes:
    """The sizes of a call with features `x`; static where they can be."""
    dynamic = tf.shape(x)
    batch, height, width = (
        dynamic[axis] if x.shape[axis] is None else x.shape[axis] for axis in range(3)
    )
    out_height, top = geometry.axis(0, height)
    out_width, left = geometry.axis(1, width)
    return Sizes(batch, height, width, x.shape[3], out_height, out_width, top, left)


def static_output_shape(
    shape: tf.TensorShape, out_channels: int, geometry: Geometry
) -> list[int | None]:
    """The output shape for an input of static `shape`, None where it is not known."""
    out = [None if shape[a + 1] is None else geometry.axis(a, shape[a + 1])[0] for a in (0, 1)]
    return [shape[0], *out, out_channels]


def checked_arguments(x, offset, kernel, mask, strides, padding, dilations, groups, offset_groups):
    """Returns x, offset, kernel, mask as tensors and the `Geometry`, or raises naming the misfit.

    Args and Raises: as in `deform_conv2d`.
    """
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        raise TypeError(f"x: expected a floating type, got {x.dtype.name}")
    offset = tf.convert_to_tensor(offset)
    kernel = tf.convert_to_tensor(kernel)
    mask = None if mask is None else tf.convert_to_tensor(mask)
    for name, value in (("x", x), ("offset", offset), ("kernel", kernel), ("mask", mask)):
        if value is None:
            continue
        if not value.dtype.is_floating:
            raise TypeError(f"{name}: expected a floating type, got {value.dtype.name}")
        if value.shape.rank != 4:
            raise ValueError(f"{name}: expected a tensor of rank 4, got shape {value.shape}")
    if not kernel.shape.is_fully_defined() or 0 in kernel.shape:
        raise ValueError(
            f"kernel: expected a known, non-empty [kh, kw, C/groups, D], got {kernel.shape}"
        )
    channels, out_channels = x.shape[3], kernel.shape[3]
    if channels is None:
        raise ValueError(f"x: expected a known number of channels, got shape {x.shape}")
    for name, value in (("groups", groups), ("offset_groups", offset_groups)):
        if not isinstance(value, int) or value < 1 or channels % value:
            raise ValueError(
                f"{name}: expected a positive divisor of the {channels} channels of x, "
                f"got {value!r}"
            )
    if out_channels % groups:
        raise ValueError(
            f"kernel: expected a number of outputs divisible by groups={groups}, got {out_channels}"
        )
    if kernel.shape[2] * groups != channels:
        raise ValueError(
            f"kernel: expected {channels // groups} input channels per group (x has {channels}, "
            f"groups is {groups}), got shape {kernel.shape}"
        )
    geometry = Geometry(
        kernel_size=(kernel.shape[0], kernel.shape[1]),
        strides=_pair("strides", strides),
        paddings=_paddings(padding),
        dilations=_pair("dilations", dilations),
        groups=groups,
        offset_groups=offset_groups,
    )
    offset = _checked_field("offset", offset, x, 2, geometry)
    if mask is not None:
        mask = _checked_field("mask", mask, x, 1, geometry)
    return x, offset, kernel, mask, geometry


def _checked_field(name, field, x, per_tap, geometry):
    """Checks offset or mask against the output grid, while tracing where possible."""
    channels = per_tap * geometry.offset_groups * geometry.taps
    expected = static_output_shape(x.shape, channels, geometry)
    for axis in (1, 2):
        if expected[axis] is not None and expected[axis] < 1:
            raise ValueError(
                f"x: expected a map at least as large as the dilated kernel of size "
                f"{geometry.kernel_size} with dilations {geometry.dilations} and padding "
                f"{geometry.paddings}, got shape {x.shape}"
            )
    if not field.shape.is_compatible_with(expected):
        raise ValueError(
            f"{name}: expected shape {tuple(expected)} (batch, output height, output width, "
            f"{per_tap} * offset_groups {geometry.offset_groups} * {geometry.taps} taps) for x of "
            f"shape {x.shape}, got {field.shape}"
        )
    if field.shape.is_fully_defined() and None not in expected:
        return field
    sizes = sizes_of(x, geometry)
    check = tf.debugging.assert_equal(
        tf.shape(field),
        [sizes.batch, sizes.out_height, sizes.out_width, channels],
        message=f"{name}: expected the shape (batch, output height, output width, channels)",
    )
    with tf.control_dependencies([] if check is None else [check]):
        field = tf.identity(field)
    return tf.ensure_shape(field, field.shape.merge_with(expected))


def _pair(name, value):
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(v, int) and v >= 1 for v in pair)
    ):
        raise ValueError(f"{name}: expected a positive int or a pair of them, got {value!r}")
    return tuple(pair)


def _paddings(padding):
    """Returns ((top, bottom), (left, right)), or None for "same"."""
    if isinstance(padding, str):
        name = padding.lower()
        if name == "same":
            return None
        if name == "valid":
            return ((0, 0), (0, 0))
    elif isinstance(padding, int) and padding >= 0:
        return ((padding, padding), (padding, padding))
    elif isinstance(padding, (tuple, list)) and len(padding) == 2:
        sides = [tuple(side) if isinstance(side, (tuple, list)) else () for side in padding]
        if all(len(s) == 2 and all(isinstance(v, int) and v >= 0 for v in s) for s in sides):
            return tuple(sides)
    raise ValueError(
        'padding: expected "same", "valid", an int >= 0 or ((top, bottom), (left, right)), '
        f"got {padding!r}"
    )
