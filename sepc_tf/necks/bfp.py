"""Balanced feature pyramid of Libra R-CNN: gather, refine, scatter."""

import dataclasses

import keras
import tensorflow as tf

from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.pooling import adaptive_max_pool
from sepc_tf.ops.resize import resize_nearest
from sepc_tf.settings import setting


@dataclasses.dataclass
class BFPOptions:
    """Settings of `{type: bfp}` in `detector.necks`, behind a neck that makes a pyramid."""

    refine_level: int = setting(1, at_least=0)  # 0: the finest


@keras.saving.register_keras_serializable(package="sepc_tf")
class BFP(keras.layers.Layer):
    """Balanced feature pyramid: every level gets the same refined mean of all levels.

    All levels are resized to that of `refine_level` (finer ones by max pooling, coarser ones by
    nearest neighbours) and averaged to m, which a non-local block refines over its pixels i, j:

        r_i = m_i + out(sum_j softmax_j(theta(m_i) . phi(m_j)) g(m_j))

    with 1x1 convolutions theta, phi, g, out. r is resized back and added to each level.

    The weights of all pairs of pixels are held at once: `(H W)^2` numbers an image at that level
    (64 MB in float32 on P4 of 800 x 1280).

    Sublayers: `refine_theta`, `refine_phi`, `refine_g`, `refine_out`.

    Args:
        refine_level: index of the level whose size the mean has, 0 being the finest.

    Call arguments:
        pyramid: list of `[N, H_l, W_l, C]` maps, finest first.
        training: accepted, as every neck does; makes no difference.

    Returns:
        list of maps of the same shapes.

    Raises:
        ValueError: there is no such level, or the levels differ in channels.

    Example:
        >>> pyramid = BFP()([tf.ones([1, n, n, 8]) for n in (16, 8, 4)])
        >>> pyramid[0].shape
        TensorShape([1, 16, 16, 8])

    Source: Pang et al. 2019 (arXiv 1904.02701); paper, Table 2.
    """

    Options = BFPOptions

    def __init__(self, refine_level=1, **kwargs):
        super().__init__(**kwargs)
        self.refine_level = refine_level

    def build(self, pyramid_shape):
        channels = {shape[-1] for shape in pyramid_shape}
        if len(channels) != 1 or self.refine_level >= len(pyramid_shape):
            raise ValueError(
                f"{self.name}: BFP takes a pyramid of more than refine_level={self.refine_level} "
                f"levels with the same channels (put it behind an FPN); got shapes "
                f"{[tuple(shape) for shape in pyramid_shape]}"
            )
        (filters,) = channels
        self.theta, self.phi, self.g, self.out = (
            self._conv(f"refine_{name}", filters) for name in ("theta", "phi", "g", "out")
        )
        self.built = True

    def _conv(self, name, filters):
        conv = SymmetricConv2D(
            filters, 1, kernel_initializer="glorot_uniform", dtype=self.dtype_policy, name=name
        )
        conv.build((None, None, None, filters))
        return conv

    def call(self, pyramid, training=None):
        sizes = [(tf.shape(x)[1], tf.shape(x)[2]) for x in pyramid]
        middle = self.refine_level
        gathered = [
            self._resized(x, level, middle, sizes[middle]) for level, x in enumerate(pyramid)
        ]
        refined = self._non_local(tf.add_n(gathered) / len(gathered))
        return [
            x + self._resized(refined, middle, level, size)
            for level, (x, size) in enumerate(zip(pyramid, sizes))
        ]

    def _resized(self, x, level, target, size):
        if level == target:
            return x
        return (adaptive_max_pool if level < target else resize_nearest)(x, size)

    def _non_local(self, x):
        shape, channels = tf.shape(x), x.shape[-1]

        def pixels(conv):
            return tf.reshape(conv(x), [shape[0], -1, channels])

        scores = tf.matmul(pixels(self.theta), pixels(self.phi), transpose_b=True)
        y = tf.matmul(tf.nn.softmax(scores), pixels(self.g))
        return x + self.out(tf.reshape(y, shape))

    def compute_output_shape(self, pyramid_shape):
        return [tuple(shape) for shape in pyramid_shape]

    def get_config(self):
        return {**super().get_config(), "refine_level": self.refine_level}
