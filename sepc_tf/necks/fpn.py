"""Feature pyramid network."""

import dataclasses

import keras
import tensorflow as tf

from sepc_tf.layers.group_normalization import GroupNormalization
from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.resize import resize_nearest
from sepc_tf.settings import setting

EXTRA_LEVELS = ("c5", "p5", "pool")


@dataclasses.dataclass
class FPNOptions:
    """Settings of `{type: fpn}` in `detector.necks`."""

    filters: int | None = setting(None, at_least=1)  # null: those of the head
    num_levels: int = setting(5, at_least=1)
    min_level: int = setting(3, at_least=2, at_most=5)  # 2: from C2 and P2 on
    # what P6 is made of: a convolution of C5, of P5, or every second pixel of P5
    extra_levels: str = setting("c5", choices=EXTRA_LEVELS)
    extra_relu: bool = False  # before the convolutions of P7 and beyond
    norm: str | None = setting(None, choices=(None, "group"))  # after every convolution


@keras.saving.register_keras_serializable(package="sepc_tf")
class FPN(keras.layers.Layer):
    """Feature pyramid P3, P4, ... from the backbone maps C3, C4, C5 (or P2, ... from C2, ...).

    Top-down: `M5 = lateral(C5)`, `M_l = lateral(C_l) + nearest(M_(l+1))`; `P_l = output(M_l)` with
    3x3 convolutions. Levels coarser than P5 are stride-2 convolutions, P6 of C5 (RetinaNet) or of
    P5 (FCOS), P7 of P6; or every second pixel of the level before (Faster R-CNN). All convolutions
    have biases, unless a norm follows.

    Sublayers: `lateral_c3` ..., `output_p3` ... (P6 and P7 included if they are convolutions); with
    a norm also `lateral_c3_norm` ..., `output_p3_norm` ....

    Args:
        filters: channels of every output level.
        num_levels: number of output levels, at least the number of input maps.
        min_level: number of the finest level, which names the sublayers.
        extra_levels: what levels coarser than P5 are made of: "c5" (P6 is a convolution of C5),
            "p5" (of P5), or "pool" (every second pixel of the level before).
        extra_relu: whether a ReLU precedes the convolutions of P7 and coarser levels (not P6's).
        norm: None, or "group" for a group normalisation in 32 groups after every convolution.

    Call arguments:
        features: list of `[N, H_l, W_l, C_l]` maps [C3, C4, C5]. Sizes need not be exact halves.
        training: accepted, as every neck does; makes no difference.

    Returns:
        list of `num_levels` maps `[N, H_l, W_l, filters]`, finest first.

    Raises:
        ValueError: fewer levels are asked for than maps are given, an unknown choice, or one that
            has no effect on these levels.

    Example:
        >>> p3, p4, p5, p6, p7 = FPN(8)([tf.zeros([1, 2 * n, 3 * n, 4]) for n in (16, 8, 4)])

    Source: Lin et al. 2017 (arXiv 1612.03144); extra levels as in RetinaNet and FCOS, norm as in
        RepPoints.
    """

    Options = FPNOptions

    def __init__(
        self,
        filters=256,
        num_levels=5,
        min_level=3,
        extra_levels="c5",
        extra_relu=False,
        norm=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if extra_levels not in EXTRA_LEVELS:
            raise ValueError(f"extra_levels must be one of {EXTRA_LEVELS}, got {extra_levels!r}")
        if norm not in (None, "group"):
            raise ValueError(f'norm must be None or "group", got {norm!r}')
        if extra_relu and extra_levels == "pool":
            raise ValueError("extra_relu: True has no effect on extra_levels: pool; leave it out")
        self.filters = filters
        self.num_levels = num_levels
        self.min_level = min_level
        self.extra_levels = extra_levels
        self.extra_relu = extra_relu
        self.norm = norm

    def build(self, features_shape):
        count = len(features_shape)
        extra_count = self.num_levels - count
        if extra_count < 0:
            raise ValueError(
                f"num_levels must be at least the number of input maps, {count}; "
                f"got {self.num_levels}"
            )
        if extra_count < 1 and self.extra_levels != "c5":
            raise ValueError(
                f"extra_levels: {self.extra_levels} has no effect on {self.num_levels} levels of "
                f"{count} maps; leave it out"
            )
        if extra_count < 2 and self.extra_relu:
            raise ValueError(
                f"extra_relu: True has no effect on {self.num_levels} levels of {count} maps (it "
                "is before the second convolution beyond them); leave it out"
            )
        levels = range(self.min_level, self.min_level + self.num_levels)
        inner = [(*tuple(shape)[:-1], self.filters) for shape in features_shape]
        self.laterals = [self._conv(f"lateral_c{level}", 1) for level in levels[:count]]
        self.outputs = [self._conv(f"output_p{level}", 3) for level in levels[:count]]
        for lateral, shape in zip(self.laterals, features_shape):
            lateral.build(tuple(shape))
        for output, shape in zip(self.outputs, inner):
            output.build(shape)
        convolved = levels[count:] if self.extra_levels != "pool" else ()
        self.extras = [self._conv(f"output_p{level}", 3, strides=2) for level in convolved]
        shape = inner[-1] if self.extra_levels == "p5" else tuple(features_shape[-1])
        for extra in self.extras:
            extra.build(shape)
            shape = extra.compute_output_shape(shape)
        self.lateral_norms, self.output_norms, self.extra_norms = (
            [self._norm(conv) for conv in convs if self.norm]
            for convs in (self.laterals, self.outputs, self.extras)
        )
        self.built = True

    def _conv(self, name, kernel_size, strides=1):
        return SymmetricConv2D(
            self.filters,
            kernel_size,
            strides=strides,
            use_bias=self.norm is None,
            kernel_initializer="glorot_uniform",
            dtype=self.dtype_policy,
            name=name,
        )

    def _norm(self, conv):
        norm = GroupNormalization(dtype=self.dtype_policy, name=f"{conv.name}_norm")
        norm.build((None, None, None, self.filters))
        return norm

    def call(self, features, training=None):
        merged = self.top_down(features)
        pyramid = _each(self.output_norms, _each(self.outputs, merged))
        return self.extended(pyramid, features[-1])

    def top_down(self, features):
        """The merged maps M3, M4, M5, which the output convolutions take.

        Args:
            features: as in a call.

        Returns:
            list of `[N, H_l, W_l, filters]` maps.
        """
        merged = _each(self.lateral_norms, _each(self.laterals, features))
        for level in reversed(range(len(merged) - 1)):
            shape = tf.shape(merged[level])
            merged[level] += resize_nearest(merged[level + 1], (shape[1], shape[2]))
        return merged

    def extended(self, pyramid, c5):
        """A pyramid with the levels beyond P5.

        Args:
            pyramid: list of P3, P4, P5.
            c5: the backbone's coarsest map.

        Returns:
            list of `num_levels` maps.
        """
        pyramid = list(pyramid)
        while len(pyramid) < self.num_levels and self.extra_levels == "pool":
            pyramid.append(pyramid[-1][:, ::2, ::2])
        coarsest = c5 if self.extra_levels == "c5" else pyramid[-1]
        for i, extra in enumerate(self.extras):
            coarsest = extra(tf.nn.relu(coarsest) if self.extra_relu and i > 0 else coarsest)
            if self.extra_norms:
                coarsest = self.extra_norms[i](coarsest)
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
            "extra_levels": self.extra_levels,
            "extra_relu": self.extra_relu,
            "norm": self.norm,
        }


def _each(layers, maps):
    """Each layer on its map; the maps themselves where there are no layers."""
    return [layer(x) for layer, x in zip(layers, maps)] if layers else list(maps)
