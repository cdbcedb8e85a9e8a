"""The head of RepPoints: a first set of points, and classes and a better set seen through it."""

from __future__ import annotations

import math

import keras
import numpy as np
import tensorflow as tf

from sepc_tf.compat import float32_weight_options
from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.deform_conv2d import deform_conv2d
from sepc_tf.ops.point_sets import TRANSFORMS, point_set_boxes, scale_gradient


@keras.saving.register_keras_serializable(package="sepc_tf")
class RepPointsHead(keras.layers.Layer):
    """Predicts points, then looks at them by deformable convolutions, on every level alike.

    With `c`, `b` the class and box features and `base_k` the place of tap k of a k x k kernel:

        init       = out(relu(conv(b)))
        offsets_k  = init_k - base_k
        logits     = out(relu(deformable(c, offsets)))
        refine     = init + out(relu(deformable(b, offsets)))

    where `init` has no gradient in the last line, and one multiplied by `gradient_scale` through
    the offsets. Tap k so samples the features at point k.

    Kernels start as N(0, 0.01); the classification bias at `-ln((1 - prior) / prior)`.

    Sublayers: `points_init_conv`, `points_init_out`, `class_out`, `points_refine_out`. Variables of
    its own: `class_conv_kernel`, `refine_conv_kernel` `[k, k, C, filters]`, and with the transform
    "moment" `moment_transfer` `[2]`.

    Args:
        num_classes: number K of object classes, without background.
        filters: channels between the two convolutions of a branch; None for those of its input.
        num_points: points of a set; the square of the odd side of the deformable kernels.
        transform: from points to boxes, "moment", "minmax" or "partial_minmax"; see
            `sepc_tf.ops.point_sets.point_set_boxes`.
        moment_gradient_scale: factor of the gradient of `moment_transfer`.
        gradient_scale: see above.
        prior: initial score.

    Call arguments:
        inputs: `(cls_pyramid, box_pyramid)`, two lists of `[B, H_l, W_l, C]` maps.

    Returns:
        dict of three lists of float32 maps: `classification` `[B, H_l, W_l, K]` logits,
        `points_init` and `points_refine` `[B, H_l, W_l, 2 num_points]`, points relative to their
        cell in units of the stride, y first.

    Raises:
        ValueError: an argument out of its range; the message names it.

    Example:
        >>> features = [tf.zeros([1, 8, 8, 16]), tf.zeros([1, 4, 4, 16])]
        >>> RepPointsHead(num_classes=3)((features, features))["points_refine"][0].shape
        TensorShape([1, 8, 8, 18])

    Source: RepPoints (arXiv 1904.11490), section 4.2.
    """

    def __init__(
        self,
        num_classes,
        filters=None,
        num_points=9,
        transform="moment",
        moment_gradient_scale=0.01,
        gradient_scale=0.1,
        prior=0.01,
        **kwargs,
    ):
        super().__init__(**kwargs)
        side = math.isqrt(num_points)
        if side % 2 == 0 or side < 3 or side * side != num_points:
            raise ValueError(
                f"num_points must be the square of an odd number from 3 on; got {num_points}"
            )
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1; got {num_classes}")
        if transform not in TRANSFORMS:
            raise ValueError(f"transform must be one of {TRANSFORMS}; got {transform!r}")
        self.num_classes = num_classes
        self.filters = filters
        self.num_points = num_points
        self.transform = transform
        self.moment_gradient_scale = moment_gradient_scale
        self.gradient_scale = gradient_scale
        self.prior = prior
        self.kernel_size = side
        self.class_out = self._out("class_out", num_classes, -math.log((1 - prior) / prior))
        self.points_init_out = self._out("points_init_out", 2 * num_points)
        self.points_refine_out = self._out("points_refine_out", 2 * num_points)

    def _out(self, name, filters, bias=0.0):
        return SymmetricConv2D(
            filters,
            1,
            kernel_initializer=_small(),
            bias_initializer=keras.initializers.Constant(bias),
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, input_shape):
        cls_shape, box_shape = (tuple(shapes[0]) for shapes in input_shape)
        filters = self.filters or box_shape[-1]
        self.points_init_conv = SymmetricConv2D(
            filters,
            3,
            kernel_initializer=_small(),
            dtype=self.dtype_policy,
            name="points_init_conv",
        )
        self.points_init_conv.build(box_shape)
        for out in (self.class_out, self.points_init_out, self.points_refine_out):
            out.build((*box_shape[:-1], filters))
        side = self.kernel_size
        self.class_conv_kernel, self.refine_conv_kernel = (
            self.add_weight(
                name=f"{branch}_conv_kernel",
                shape=(side, side, shape[-1], filters),
                initializer=_small(),
                trainable=True,
            )
            for branch, shape in (("class", cls_shape), ("refine", box_shape))
        )
        if self.transform == "moment":
            self.moment_transfer = self.add_weight(
                name="moment_transfer",
                shape=(2,),
                initializer="zeros",
                trainable=True,
                **float32_weight_options(),
            )
        self.built = True

    def call(self, inputs):
        taps = np.arange(self.kernel_size) - self.kernel_size // 2
        base = np.stack(np.meshgrid(taps, taps, indexing="ij"), axis=-1).reshape(-1)  # y, x, y, ...
        outputs = {"classification": [], "points_init": [], "points_refine": []}
        for cls, box in zip(*inputs):
            init = _full(self.points_init_out(keras.activations.relu(self.points_init_conv(box))))
            offsets = scale_gradient(init, self.gradient_scale) - base.astype(init.dtype.name)
            logits = self.class_out(self._seen_at(offsets, cls, self.class_conv_kernel))
            refine = self.points_refine_out(self._seen_at(offsets, box, self.refine_conv_kernel))
            outputs["classification"].append(_full(logits))
            outputs["points_init"].append(init)
            outputs["points_refine"].append(_full(refine) + tf.stop_gradient(init))
        return outputs

    def _seen_at(self, offsets, features, kernel):
        kernel = tf.cast(tf.convert_to_tensor(kernel), features.dtype)
        padding = self.kernel_size // 2
        return keras.activations.relu(deform_conv2d(features, offsets, kernel, padding=padding))

    def boxes(self, points):
        """The boxes of point sets, in the same units.

        Args:
            points: `[..., 2 num_points]`, y first.

        Returns:
            `[..., 4]` xyxy.
        """
        if self.transform != "moment":
            return point_set_boxes(points, self.transform)
        transfer = tf.cast(tf.convert_to_tensor(self.moment_transfer), points.dtype)
        return point_set_boxes(
            points, "moment", scale_gradient(transfer, self.moment_gradient_scale)
        )

    def compute_output_shape(self, input_shape):
        def shapes(channels):
            return [(*tuple(shape)[:-1], channels) for shape in input_shape[0]]

        return {
            "classification": shapes(self.num_classes),
            "points_init": shapes(2 * self.num_points),
            "points_refine": shapes(2 * self.num_points),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "filters": self.filters,
            "num_points": self.num_points,
            "transform": self.transform,
            "moment_gradient_scale": self.moment_gradient_scale,
            "gradient_scale": self.gradient_scale,
            "prior": self.prior,
        }


def _small():
    return keras.initializers.RandomNormal(stddev=0.01)


def _full(x):
    """Half precision as float32, other types as they are."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
