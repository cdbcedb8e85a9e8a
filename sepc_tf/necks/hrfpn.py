"""HRFPN: a pyramid from the finest map, to which all maps of the backbone contribute."""

import dataclasses

import keras
import tensorflow as tf

from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.resize import resize_bilinear
from sepc_tf.settings import setting


@dataclasses.dataclass
class HRFPNOptions:
    """Settings of `{type: hrfpn}` in `detector.necks`."""

    filters: int | None = setting(None, at_least=1)  # null: those of the head
    num_levels: int = setting(5, at_least=1)
    # of the output convolutions: 2: levels P3, P4, ... (of strides 8, 16, ...), 1: P2, P3, ...
    stride: int = setting(2, choices=(1, 2))


@keras.saving.register_keras_serializable(package="sepc_tf")
class HRFPN(keras.layers.Layer):
    """Feature pyramid of HRNet, from the backbone maps C2, C3, C4, C5.

    All maps are resized bilinearly to C2's size, concatenated, and reduced by a 1x1 convolution to
    one map r. Output level i is a 3x3 convolution, of the given stride, of r averaged over windows
    of side and stride 2^i (incomplete windows at the far sides are left out). No activations.

    Sublayers: `reduction`, `output_0`, `output_1`, ....

    Args:
        filters: channels of every output level.
        num_levels: number of output levels.
        stride: of the output convolutions; 2 gives P3, P4, ..., 1 gives P2, P3, ....

    Call arguments:
        features: list of `[N, H_l, W_l, C_l]` maps [C2, C3, C4, C5]. Where sizes are no exact
            halves, which the authors' code refuses, maps are stretched to C2's size all the same.
        training: accepted, as every neck does; makes no difference.

    Returns:
        list of `num_levels` maps `[N, H_l, W_l, filters]`, finest first.

    Raises:
        ValueError: C2 is smaller than the largest window, 2^(num_levels - 1) pixels (where its size
            is known only at run time: InvalidArgumentError).

    Example:
        >>> pyramid = HRFPN(8)([tf.zeros([1, n, 2 * n, 4]) for n in (32, 16, 8, 4)])
        >>> [level.shape[1] for level in pyramid]
        [16, 8, 4, 2, 1]

    Source: Sun et al. 2019 (arXiv 1904.04514); paper, Table 2.
    """

    Options = HRFPNOptions
    min_level = 2

    def __init__(self, filters=256, num_levels=5, stride=2, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.num_levels = num_levels
        self.stride = stride
        self.reduction = self._conv("reduction", 1)
        self.outputs = [self._conv(f"output_{i}", 3, strides=stride) for i in range(num_levels)]

    @property
    def finest_output_level(self):
        """Number of the finest level that comes out, 3 for P3."""
        return self.min_level + self.stride - 1

    def _conv(self, name, kernel_size, strides=1):
        return SymmetricConv2D(
            self.filters,
            kernel_size,
            strides=strides,
            # Caffe2's Xavier, as mmdetection initialises it: variance 1 / fan_in.
            kernel_initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "uniform"),
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, features_shape):
        self.reduction.build((None, None, None, sum(shape[-1] for shape in features_shape)))
        for output in self.outputs:
            output.build((None, None, None, self.filters))
        self.built = True

    def call(self, features, training=None):
        finest = self._checked(features[0])
        size = tf.shape(finest)[1], tf.shape(finest)[2]
        reduced = self.reduction(
            tf.concat([finest, *(resize_bilinear(x, size) for x in features[1:])], axis=-1)
        )
        return [
            output(tf.nn.avg_pool2d(reduced, 2**i, 2**i, "VALID") if i else reduced)
            for i, output in enumerate(self.outputs)
        ]

    def _checked(self, finest):
        """The finest map, if the largest window fits on it."""
        window = 2 ** (self.num_levels - 1)
        message = (
            f"{self.name}: the finest map must be at least {window} x {window} cells for "
            f"{self.num_levels} levels; on C2 these are images of {4 * window} pixels on both "
            "sides. Larger images, or fewer num_levels. Height and width:"
        )
        size = finest.shape[1:3]
        if None not in size:
            if min(size) < window:
                raise ValueError(f"{message} {tuple(size)}")
            return finest
        size = tf.shape(finest)[1:3]
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.reduce_min(size) >= window, [message, size])]
        ):
            return tf.identity(finest)

    def compute_output_shape(self, features_shape):
        batch, *sides, _ = tuple(features_shape[0])
        return [
            (
                batch,
                *(None if n is None else (n // 2**i - 1) // self.stride + 1 for n in sides),
                self.filters,
            )
            for i in range(self.num_levels)
        ]

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "num_levels": self.num_levels,
            "stride": self.stride,
        }
