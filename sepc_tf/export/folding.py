"""Batch norms that only use running statistics, computed into the convolutions before them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from sepc_tf.backbones.resnet import ResNet, ResNetBlock
from sepc_tf.checkpoints.variables import assign_variables, named_variables, read_variables
from sepc_tf.detectors import Detector
from sepc_tf.layers.pconv import PConv
from sepc_tf.layers.pyramid_normalization import IndependentBatchNormalization
from sepc_tf.necks.nas_fpn import ConvBatchNorm
from sepc_tf.necks.sepc import SEPC


def folded(detector: Detector) -> Detector:
    """A copy of a detector, for inference alone, whose convolutions have taken up its batch norms.

    With `s = gamma / sqrt(variance + epsilon)` the norm of a sum of convolutions is again one:

        norm(sum_i w_i * x_i + b_i) = sum_i (s w_i) * x_i + s b_i, plus beta - s mean

    also where a term is up-sampled or deformed, which both keep channels apart, the first because
    its weights add up to 1. A norm with parameters for each level stays: the kernels before it are
    those of all levels. Group norms have no fixed statistics and stay, and so do the norms of a
    KerasCV backbone, whose convolutions stand directly before them.

    Args:
        detector: a built detector; it is not changed.

    Returns:
        The copy. It must not be trained or saved.

    Example:
        >>> detector = RetinaNet.from_parts(
        ...     ResNet(18, width=8), FPN(16), SEPC.variant("sepc_lite", filters=16), num_classes=3)
        >>> folded(detector).towers.extra_norms
        []
    """
    copy = type(detector).from_config(detector.get_config())
    weights = read_variables(named_variables(detector))
    assign_variables(named_variables(copy), weights, "the copy to fold")
    for layer in list(copy._flatten_layers()):
        if isinstance(layer, PConv) and _foldable(layer.norm):
            terms = [layer.same]
            if layer.scale_kernel_size == 3:
                terms += [layer.coarser, layer.finer]
            _fold(terms, layer.norm)
            layer.norm = None
        elif isinstance(layer, SEPC) and layer.extra_norms and _foldable(layer.extra_norms[0]):
            for conv, norm in zip(layer.extra_convs, layer.extra_norms):
                _fold([conv], norm)
            layer.extra_norms = []
        elif isinstance(layer, ConvBatchNorm):
            _fold([layer.conv], layer.norm)
            layer.norm = _unchanged
        elif isinstance(layer, ResNet):
            _fold([layer.conv1], layer.bn1)
            layer.bn1 = _unchanged
        elif isinstance(layer, ResNetBlock):
            for conv, norm in zip(layer.convs, layer.norms):
                _fold([conv], norm)
            layer.norms = [_unchanged] * len(layer.convs)
            if layer.downsample_bn is not None:
                _fold([layer.downsample_conv], layer.downsample_bn)
                layer.downsample_bn = _unchanged
    return copy


def _foldable(norm):
    return norm is not None and not isinstance(norm, IndependentBatchNormalization)


def _fold(convs, norm):
    """Scales the kernels and biases of summed convolutions; the first one gets the shift."""
    gamma, beta, mean, variance = (
        np.asarray(tf.convert_to_tensor(v), np.float64)
        for v in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    scale = gamma / np.sqrt(variance + norm.epsilon)
    shift = beta - scale * mean
    for conv in convs:
        kernel = np.asarray(tf.convert_to_tensor(conv.kernel), np.float64)
        conv.kernel.assign((kernel * scale).astype(np.float32))
        if conv.use_bias:
            shift = shift + scale * np.asarray(tf.convert_to_tensor(conv.bias), np.float64)
        conv.use_bias, conv.bias = True, tf.constant(shift, tf.float32)
        shift = 0.0 * shift


def _unchanged(x, training=None):
    return x
