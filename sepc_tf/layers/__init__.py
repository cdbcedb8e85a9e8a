"""Keras layers with weights; each is usable alone in a functional Keras model."""

from sepc_tf.layers.deform_conv import DeformConv2D
from sepc_tf.layers.group_normalization import GroupNormalization
from sepc_tf.layers.pconv import PConv
from sepc_tf.layers.pyramid_normalization import (
    IndependentBatchNormalization,
    IntegratedBatchNormalization,
    SingleBatchNormalization,
)
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.layers.scale_equalizing_conv import ScaleEqualizingConv
from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D

__all__ = [
    "DeformConv2D",
    "GroupNormalization",
    "IndependentBatchNormalization",
    "IntegratedBatchNormalization",
    "PConv",
    "RoIAlign",
    "ScaleEqualizingConv",
    "SingleBatchNormalization",
    "SymmetricConv2D",
]
