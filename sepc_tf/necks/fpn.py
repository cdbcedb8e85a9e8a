"""Feature pyramid network."""

import dataclasses

import keras
import tensorflow as tf

from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.resize import resize_nearest
from sepc_tf.settings import setting


@dataclasses.dataclass
class FPNOptions:
    """Settings of `{type: fpn}` in `detector.necks`."""

    filters: int | None = setting(None, at_least=1)  # null: those of the head
    num_levels: int = setting(5, at_least=1)
    min_level: int = setting(3, at_least=2, at_most=5)  # 2: from C2 and P2 on


@keras.saving.register_keras_serializable(package="sepc_tf")
class FPN(keras.layers.Layer):
    """Feature pyramid P3, P4, ... from the backbone maps C3, C4, C5 (or P2, ... from C2, ...).

    Top-down: `M5 = lateral(C5)`, `M_l = lateral(C_l) + nearest(M_(l+1))`; `P_l = output(M_l)` with
    3x3 convolutions. Coarser levels are stride-2 convolutions: P6 of C5, P7 of P6, without an
    activation between. All convolutions have biases.

    Sublayers: `lateral_c3` ..., `output_p3` ... (P6 and P7 included).

    Args:
        filters: channels of every output level.
        num_levels: number of output levels, at least the number of input maps.
        min_level: number of the finest level, which names the sublayers.

    Call arguments:
        features: list of `[N, H_l, W_l, C_l]` maps [C3, C4, C5]. Sizes need not be exact halves.
        training: accepted, as every neck does; makes no difference.

    Returns:
        list of `num_levels` maps `[N, H_l, W_l, filters]`, finest first.

    Raises:
        ValueError: fewer levels are asked for than maps are given.

    Example:
        >>> p3, p4, p5, p6, p7 = FPN(8)([tf.zeros([1, 2 * n, 3 * n, 4]) for n in (16, 8, 4)])

    Source: Lin et al. 2017 (arXiv 1612.03144); extra levels as in RetinaNet.
    """

    Options = FPNOptions

    def __init__(self, filters=256, num_levels=5, min_level=3, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.num_levels = num_levels
        self.min_level = min_level

    def build(self, features_shape):
        count = len(features_shape)
        if count > self.num_levels:
            raise ValueError(
                f"num_levels must be at least the number of input maps, {count}; "
                f"got {self.num_levels}"
            )
        levels = range(self.min_level, self.min_level + self.num_levels)
        self.laterals = [self._conv(f"lateral_c{level}", 1) for level in levels[:count]]
        self.outputs = [self._conv(f"output_p{level}", 3) for level in levels[:count]]
        self.extras = [self._conv(f"output_p{level}", 3, strides=2) for level in levels[count:]]
        merged = [(*tuple(shape)[:-1], self.filters) for shape in features_shape]
        for lateral, shape in zip(self.laterals, features_shape):
            lateral.build(tuple(shape))
        for output, shape in zip(self.outputs, merged):
            output.build(shape)
        shape = tuple(features_shape[-1])
        for extra in self.extras:
            extra.build(shape)
            shape = extra.compute_output_shape(shape)
        self.built = True

    def _conv(self, name, kernel_size, strides=1):
        return SymmetricConv2D(
            self.filters,
            kernel_size,
            strides=strides,
            kernel_initializer="glorot_uniform",
            dtype=self.dtype_policy,
            name=name,
        )

    def call(self, features, training=None):
        merged = [lateral(c) for lateral, c in zip(self.laterals, features)]
        for level in reversed(range(len(merged) - 1)):
            shape = tf.shape(merged[level])
            merged[level] += resize_nearest(merged[level + 1], (shape[1], shape[2]))
        pyramid = [output(m) for output, m in zip(self.outputs, merged)]
        coarsest = features[-1]
        for extra in self.extras:
            coarsest = extra(coarsest)
            pyramid.append(coarsest)
        return pyramid

    def compute_output_shape(self, features_shape):
        shapes = [(*tuple(shape)[:-1], self.filters) for shape in features_shape]
        while len(shapes) < self.num_levels:
            batch, height, width, channels = shapes[-1]
            halves = (None if n is None else (n - 1) // 2 + 1 for n in (height, width))
            shapes.append((batch, *halves, channels))
        return shapes

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "num_levels": self.num_levels,
            "min_level": self.min_level,
        }
