"""Stacked pyramid convolutions as a neck: from a pyramid to a pyramid."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from sepc_tf.layers.pconv import PConv
from sepc_tf.settings import setting


@dataclasses.dataclass
class PConvNeckOptions:
    """Settings of `{type: pconv}` in `detector.necks`."""

    filters: int | None = setting(None, at_least=1)  # null: those of the head
    num_convs: int = setting(4, at_least=1)
    deformable: bool = False  # scale-equalising
    normalization: str | None = setting(None, choices=(None, "integrated", "single", "independent"))
    # of the initial kernels; null: 0.01 before a norm, without one what keeps the variance
    kernel_stddev: float | None = setting(None, above=0)


@keras.saving.register_keras_serializable(package="sepc_tf")
class PConvNeck(keras.layers.Layer):
    """`num_convs` stacked `PConv` modules between a pyramid and everything after it.

    Sublayers: `pconv_0`, `pconv_1`, ....

    Args:
        filters: channels of every map.
        num_convs: number of modules.
        deformable: whether they are scale-equalising.
        normalization: "integrated", "single", "independent" or None, in every module.
        kernel_stddev: standard deviation of the initial kernels; None for `PConv`'s rule.

    Call arguments:
        pyramid: list of `[N, H_l, W_l, C]` maps, finest first.
        training: passed to the normalisations.

    Returns:
        list of `[N, H_l, W_l, filters]` maps.

    Example:
        >>> fine, coarse = PConvNeck(8)([tf.zeros([1, 8, 8, 8]), tf.zeros([1, 4, 4, 8])])

    Source: paper, Table 4 (two-stage detectors).
    """

    Options = PConvNeckOptions

    def __init__(
        self,
        filters: int = 256,
        num_convs: int = 4,
        deformable: bool = False,
        normalization: str | None = None,
        kernel_stddev: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.num_convs = num_convs
        self.deformable = deformable
        self.normalization = normalization
        self.kernel_stddev = kernel_stddev
        self.pconvs = [
            PConv(
                filters,
                deformable=deformable,
                normalization=normalization,
                kernel_stddev=kernel_stddev,
                dtype=self.dtype_policy,
                name=f"pconv_{i}",
            )
            for i in range(num_convs)
        ]

    def build(self, pyramid_shape):
        shapes = [tuple(shape) for shape in pyramid_shape]
        for pconv in self.pconvs:
            pconv.build(shapes)
            shapes = pconv.compute_output_shape(shapes)
        self.built = True

    def call(self, pyramid, training=None):
        for pconv in self.pconvs:
            pyramid = pconv(pyramid, training=training)
        return pyramid

    def compute_output_shape(self, pyramid_shape):
        return [(*tuple(shape)[:-1], self.filters) for shape in pyramid_shape]

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "num_convs": self.num_convs,
            "deformable": self.deformable,
            "normalization": self.normalization,
            "kernel_stddev": self.kernel_stddev,
        }
