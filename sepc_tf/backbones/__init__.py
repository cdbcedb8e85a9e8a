"""Backbones: images -> feature maps, the coarsest of stride 32."""

from sepc_tf.backbones.keras_cv import KerasCVFeatures
from sepc_tf.backbones.resnet import ResNet

__all__ = ["KerasCVFeatures", "ResNet"]
