"""Anchor boxes, and which of them lie on an image."""

import dataclasses

import numpy as np
import tensorflow as tf

from sepc_tf.ops.boxes import check_convention
from sepc_tf.ops.saved import SavedByFields


@dataclasses.dataclass(frozen=True)
class AnchorGenerator(SavedByFields):
    """Boxes of fixed sizes and shapes around every cell of every level.

    The anchor of scale s and ratio r (height / width) on a level of stride t has sides
    `width = t s / sqrt(r)`, `height = t s sqrt(r)`, with
    `s = octave_base 2^(i / scales_per_octave)`, or one of `scales`. Within a cell, anchors are
    ordered ratio first: index = ratio * number of scales + scale.

    - "modern": centred at `((x + 0.5) t, (y + 0.5) t)`, exact corners.
    - "mmdet1": centred at `(x t + (t - 1) / 2, ...)`, widths count the last pixel, corners of the
      anchors of cell (0, 0) rounded to integers (half to even).

    Args:
        strides: stride of each level, finest first.
        octave_base: size of the smallest square anchor in strides.
        scales_per_octave: number of scales, spread evenly over a factor of two.
        scales: sizes of the square anchors in strides, in place of `octave_base` and
            `scales_per_octave`.
        ratios: heights / widths.
        convention: "modern" or "mmdet1".

    Raises:
        ValueError: unknown convention, or a list is empty.

    Example:
        >>> AnchorGenerator(strides=(8,), scales_per_octave=1, ratios=(1.0,))([(1, 2)])[0].numpy()
        array([[-12., -12.,  20.,  20.],
               [ -4., -12.,  28.,  20.]], dtype=float32)

    Source: RetinaNet (arXiv 1708.02002), section 4.
    """

    strides: tuple = (8, 16, 32, 64, 128)
    octave_base: float = 4.0
    scales_per_octave: int = 3
    scales: tuple | None = None
    ratios: tuple = (0.5, 1.0, 2.0)
    convention: str = "modern"

    def __post_init__(self):
        check_convention(self.convention)
        for name in ("strides", "ratios", "scales"):
            values = getattr(self, name)
            if name == "scales" and values is None:
                continue
            object.__setattr__(self, name, tuple(values))
            if not values:
                raise ValueError(f"{name} must not be empty")

    @property
    def anchors_per_cell(self):
        """Number of anchors of one cell."""
        return len(self.ratios) * (len(self.scales) if self.scales else self.scales_per_octave)

    def __call__(self, level_sizes):
        """Anchors of every level.

        Args:
            level_sizes: height and width of each level in cells, pairs of ints or of int tensors.

        Returns:
            list of `[H_l * W_l * A, 4]` float32 xyxy, in the order (row, column, anchor).

        Raises:
            ValueError: not one size for each stride.
        """
        if len(level_sizes) != len(self.strides):
            raise ValueError(
                f"level_sizes must have {len(self.strides)} entries, one for each stride; "
                f"got {len(level_sizes)}"
            )
        return [self._level(stride, *size) for stride, size in zip(self.strides, level_sizes)]

    def cell_anchors(self, stride):
        """The anchors of cell (0, 0): `[A, 4]` float32 numpy array, xyxy."""
        if self.scales:
            scales = np.asarray(self.scales, np.float32)
        else:
            octave = np.arange(self.scales_per_octave) / self.scales_per_octave
            scales = np.float32(self.octave_base) * np.float32(2.0) ** octave.astype(np.float32)
        root = np.sqrt(np.asarray(self.ratios, np.float32))
        widths = (np.float32(stride) / root[:, None] * scales).ravel()
        heights = (np.float32(stride) * root[:, None] * scales).ravel()
        if self.convention == "mmdet1":
            centre, half_w, half_h = (stride - 1) / 2, (widths - 1) / 2, (heights - 1) / 2
        else:
            centre, half_w, half_h = stride / 2, widths / 2, heights / 2
        corners = [centre - half_w, centre - half_h, centre + half_w, centre + half_h]
        corners = np.stack(corners, axis=1).astype(np.float32)
        return np.round(corners) if self.convention == "mmdet1" else corners

    def _level(self, stride, height, width):
        # [H, W, 1, 4] cell corners + [A, 4] anchors of cell (0, 0) -> [H, W, A, 4]
        y, x = (tf.range(n, dtype=tf.int32) * stride for n in (height, width))
        x, y = tf.meshgrid(tf.cast(x, tf.float32), tf.cast(y, tf.float32))
        corners = tf.stack([x, y, x, y], axis=-1)[:, :, None]
        return tf.reshape(corners + self.cell_anchors(stride), [-1, 4])

    def valid(self, level_sizes, image_sizes, divisor=32):
        """Which anchors belong to cells inside their image.

        A batch is padded to its largest image; the cells beyond an image's own padded size
        (rounded up to a multiple of `divisor`) see nothing but padding.

        Args:
            level_sizes: as in `__call__`.
            image_sizes: `[B, 2]` int, height and width of each image.
            divisor: image sides are padded to multiples of it.

        Returns:
            `[B, N]` bool, the levels concatenated.
        """
        cells = cells_on_images(level_sizes, self.strides, image_sizes, divisor)
        return tf.repeat(cells, self.anchors_per_cell, axis=1)


def cells_on_images(level_sizes, strides, image_sizes, divisor=32):
    """Which cells of a pyramid begin inside their image, padded to a multiple of `divisor`.

    Args:
        level_sizes: height and width of each level in cells, pairs of ints or of int tensors.
        strides: stride of each level.
        image_sizes: `[B, 2]` int, height and width of each image.
        divisor: image sides are padded to multiples of it.

    Returns:
        `[B, N]` bool, N = sum over levels of `H_l * W_l`, in the order (level, row, column).

    Example:
        >>> cells_on_images([(1, 3)], [8], [[8, 16]], divisor=8).numpy()
        array([[ True,  True, False]])
    """
    padded = -(-tf.cast(image_sizes, tf.int32) // divisor) * divisor
    flags = []
    for stride, (height, width) in zip(strides, level_sizes):
        inside_y = tf.range(height)[None] * stride < padded[:, :1]
        inside_x = tf.range(width)[None] * stride < padded[:, 1:]
        inside = inside_y[:, :, None] & inside_x[:, None]
        flags.append(tf.reshape(inside, [tf.shape(padded)[0], -1]))
    return tf.concat(flags, axis=1)
