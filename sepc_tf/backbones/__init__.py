"""Backbones: images -> feature maps [C2, C3, C4, C5]."""

from sepc_tf.backbones.resnet import ResNet

__all__ = ["ResNet"]
