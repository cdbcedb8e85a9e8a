"""RoIAlign as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.ops.roi_align import roi_align


@keras.saving.register_keras_serializable(package="sepc_tf")
class RoIAlign(keras.layers.Layer):
    """Features of a fixed size inside each box, from the level of a pyramid that fits the box.

    The operation is `sepc_tf.ops.roi_align`. Boxes stay float32 under mixed precision: half
    precision knows no single pixels beyond 256 or 2048.

    Args:
        strides: of the levels that are read, in pixels, finest first. A pyramid may have more
            levels; they are not read.
        size: bins along each side of a box.
        samples: samples along each side of a bin.
        finest_scale: boxes from twice this side on leave the finest level.
        convention: "modern" (half-pixel) or "mmdet1".

    Call arguments:
        pyramid: list of `[B, H_l, W_l, C]` maps, finest first.
        boxes: `[B, R, 4]` float32 xyxy in pixels of the image.
        present: `[B, R]` bool, which boxes are real; None: all.

    Returns:
        `[B, R, size, size, C]`; zeros where no box is.

    Raises:
        ValueError: the pyramid has fewer levels than there are strides.

    Example:
        >>> pool = RoIAlign(strides=(4, 8))
        >>> maps = [tf.zeros([1, 16, 24, 8]), tf.zeros([1, 8, 12, 8]), tf.zeros([1, 4, 6, 8])]
        >>> pool(maps, tf.constant([[[0.0, 0.0, 30.0, 20.0]]])).shape
        TensorShape([1, 1, 7, 7, 8])

    Source: Mask R-CNN (arXiv 1703.06870), section 3.
    """

    def __init__(
        self,
        strides: Sequence[int] = (4, 8, 16, 32),
        size: int = 7,
        samples: int = 2,
        finest_scale: float = 56.0,
        convention: str = "modern",
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.strides = tuple(strides)
        self.size = size
        self.samples = samples
        self.finest_scale = finest_scale
        self.convention = convention
        self.built = True

    def call(self, pyramid, boxes, present=None):
        levels = len(self.strides)
        if len(pyramid) < levels:
            raise ValueError(
                f"{self.name}: expected at least {levels} levels, one for each stride; "
                f"got {len(pyramid)}"
            )
        return roi_align(
            [tf.cast(x, self.compute_dtype) for x in pyramid[:levels]],
            boxes,
            present,
            strides=self.strides,
            size=self.size,
            samples=self.samples,
            finest_scale=self.finest_scale,
            convention=self.convention,
        )

    def compute_output_shape(self, pyramid_shape, boxes_shape, present_shape=None):
        return (*tuple(boxes_shape)[:2], self.size, self.size, tuple(pyramid_shape[0])[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "strides": list(self.strides),
            "size": self.size,
            "samples": self.samples,
            "finest_scale": self.finest_scale,
            "convention": self.convention,
        }
