"""NAS-FPN: a pyramid refined by stacked merging cells that were found by a search."""

import dataclasses

import keras
import tensorflow as tf

from sepc_tf.layers.pyramid_normalization import IntegratedBatchNormalization
from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.pooling import adaptive_max_pool
from sepc_tf.ops.resize import resize_nearest
from sepc_tf.settings import setting

# The merges of a cell that end with a convolution: kind_<levels merged>_<level of the result>.
CONVOLVED = ("gp_64_4", "sum_44_4", "sum_43_3", "sum_34_4", "sum_55_5", "sum_77_7", "gp_75_6")


@dataclasses.dataclass
class NASFPNOptions:
    """Settings of `{type: nas_fpn}` in `detector.necks`."""

    filters: int | None = setting(None, at_least=1)  # null: those of the head
    num_cells: int = setting(7, at_least=1)


@keras.saving.register_keras_serializable(package="sepc_tf")
class ConvBatchNorm(keras.layers.Layer):
    """A convolution without bias and a batch norm, whose statistics are of all replicas.

    Sublayers: `conv`, `norm`.

    Args:
        filters, kernel_size: of the convolution.

    Call arguments:
        x: `[N, H, W, C]` map.
        training: passed to the norm.

    Returns:
        `[N, H, W, filters]`.

    Example:
        >>> ConvBatchNorm(8, 3)(tf.zeros([1, 5, 5, 4])).shape
        TensorShape([1, 5, 5, 8])
    """

    def __init__(self, filters, kernel_size, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.conv = SymmetricConv2D(
            filters,
            kernel_size,
            use_bias=False,
            kernel_initializer="glorot_uniform",
            dtype=self.dtype_policy,
            name="conv",
        )
        self.norm = IntegratedBatchNormalization(dtype=self.dtype_policy, name="norm")

    def build(self, input_shape):
        self.conv.build(tuple(input_shape))
        self.norm.build([(None, None, None, self.filters)])
        self.built = True

    def call(self, x, training=None):
        return self.norm([self.conv(x)], training=training)[0]

    def compute_output_shape(self, input_shape):
        return (*tuple(input_shape)[:-1], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
        }


@keras.saving.register_keras_serializable(package="sepc_tf")
class NASFPN(keras.layers.Layer):
    """Feature pyramid P3 to P7 by NAS-FPN, from the backbone maps C3, C4, C5.

    P3, P4, P5 start as 1x1 convolutions, P6 and P7 as 2x2 max pooling of a 1x1 convolution of the
    level below; each with batch norm. Then every cell merges, in this order,

        a  = gp(P6, P4)      b  = sum(a, P4)      P3 = sum(b, P3)      P4 = sum(P3, b)
        P5 = sum(P5, gp(P4, P3))      P7 = sum(P7, gp(P5, b))      P6 = gp(P7, P5)

    where `sum(x, y) = conv(relu(x + y))`, `gp(x, y) = conv(relu(y + sigmoid(mean(y)) * x))` (the
    mean over all pixels of a channel), and conv is 3x3 with batch norm; the two inner gp are merged
    without convolution. Inputs are resized to the level of the result: nearest to a finer one, max
    pooling to a coarser one.

    Where sides of C5 are no multiples of 4 (sides of images no multiples of 128), which the
    authors' code refuses, the coarser sides are rounded up and max pooling has the windows of
    `adaptive_max_pool`.

    Sublayers: `lateral_3` ..., `extra_6`, `extra_7`, `cell_0_gp_64_4` ..., each a `ConvBatchNorm`.

    Args:
        filters: channels of every output level.
        num_cells: how many cells follow each other.

    Call arguments:
        features: list of `[N, H_l, W_l, C_l]` maps [C3, C4, C5].
        training: passed to the batch norms.

    Returns:
        list of 5 maps `[N, H_l, W_l, filters]`, finest first.

    Raises:
        ValueError: other than three maps are given.

    Example:
        >>> p3, p4, p5, p6, p7 = NASFPN(8, num_cells=1)([
        ...     tf.zeros([1, n, 2 * n, 4]) for n in (16, 8, 4)])
        >>> p7.shape
        TensorShape([1, 1, 2, 8])

    Source: Ghiasi et al. 2019 (arXiv 1904.07392), Fig. 6; paper, Table 2.
    """

    Options = NASFPNOptions
    min_level = 3
    num_levels = 5

    def __init__(self, filters=256, num_cells=7, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.num_cells = num_cells
        self.laterals = [self._conv(f"lateral_{level}", 1) for level in (3, 4, 5)]
        self.extras = [self._conv(f"extra_{level}", 1) for level in (6, 7)]
        # One flat list: Keras 2 does not save layers in nested ones.
        self.merges = [
            self._conv(f"cell_{cell}_{merge}", 3)
            for cell in range(num_cells)
            for merge in CONVOLVED
        ]

    def _conv(self, name, kernel_size):
        return ConvBatchNorm(self.filters, kernel_size, dtype=self.dtype_policy, name=name)

    def build(self, features_shape):
        if len(features_shape) != len(self.laterals):
            raise ValueError(
                f"{self.name}: NASFPN takes 3 maps, C3 to C5 of a backbone; got "
                f"{len(features_shape)}"
            )
        for lateral, shape in zip(self.laterals, features_shape):
            lateral.build(tuple(shape))
        for conv in [*self.extras, *self.merges]:
            conv.build((None, None, None, self.filters))
        self.built = True

    def call(self, features, training=None):
        pyramid = [lateral(c, training=training) for lateral, c in zip(self.laterals, features)]
        for extra in self.extras:
            # Rounded up, as the other levels of a backbone are.
            x = extra(pyramid[-1], training=training)
            pyramid.append(tf.nn.max_pool2d(x, 2, 2, "SAME"))
        for start in range(0, len(self.merges), len(CONVOLVED)):
            merges = dict(zip(CONVOLVED, self.merges[start : start + len(CONVOLVED)]))
            pyramid = self._cell(pyramid, merges, training)
        return pyramid

    def _cell(self, pyramid, merges, training):
        """One merging cell; the number in a name is the level."""
        p3, p4, p5, p6, p7 = pyramid

        def convolved(name, merged):
            return merges[name](tf.nn.relu(merged), training=training)

        a = convolved("gp_64_4", _attend(_up(p6, p4), p4))
        b = convolved("sum_44_4", a + p4)
        p3 = convolved("sum_43_3", _up(b, p3) + p3)
        p4 = convolved("sum_34_4", _down(p3, b) + b)
        p5 = convolved("sum_55_5", p5 + _attend(_down(p4, p5), _down(p3, p5)))
        p7 = convolved("sum_77_7", p7 + _attend(_down(p5, p7), _down(b, p7)))
        p6 = convolved("gp_75_6", _attend(_up(p7, p6), _down(p5, p6)))
        return [p3, p4, p5, p6, p7]

    def compute_output_shape(self, features_shape):
        shapes = [(*tuple(shape)[:-1], self.filters) for shape in features_shape]
        for _ in self.extras:
            batch, height, width, channels = shapes[-1]
            halves = (None if n is None else (n + 1) // 2 for n in (height, width))
            shapes.append((batch, *halves, channels))
        return shapes

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "num_cells": self.num_cells}


def _attend(x, y):
    """Global attention: `y`, and as much of `x` in each channel as the mean of `y` says."""
    return y + tf.sigmoid(tf.reduce_mean(y, axis=[1, 2], keepdims=True)) * x


def _size(x):
    return tf.shape(x)[1], tf.shape(x)[2]


def _up(x, target):
    return tf.ensure_shape(resize_nearest(x, _size(target)), target.shape)


def _down(x, target):
    return tf.ensure_shape(adaptive_max_pool(x, _size(target)), target.shape)
