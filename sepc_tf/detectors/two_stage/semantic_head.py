"""The semantic branch of a hybrid task cascade: a class for every cell, and features of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.base import all_reduce_sum
from sepc_tf.detectors.two_stage.saved import SavedByParts
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.resize import resize_bilinear_align_corners
from sepc_tf.ops.semantic_labels import UNKNOWN, labels_of_maps, labels_of_masks


@keras.saving.register_keras_serializable(package="sepc_tf")
class SemanticHead(keras.layers.Layer):
    """All levels brought to one size and added up, convolutions, logits and features.

    `x = sum over the levels of relu(conv1x1(resize(P_l)))`, bilinear with the corners aligned, to
    the size of level `fusion_level`; then 3x3 convolutions with ReLU; then a 1x1 convolution to the
    logits, and another one with ReLU to the features.

    Sublayers: `fusion_0`, `fusion_1`, ..., `conv_0`, `conv_1`, ..., `embedding`, `class_map`.

    Args:
        num_classes: semantic classes.
        num_levels: of the pyramid.
        filters: channels.
        num_convs: 3x3 convolutions.
        fusion_level: which level gives the size, 0 is the finest.

    Call arguments:
        pyramid: list of `[B, H_l, W_l, C]` maps.

    Returns:
        dict of `logits` `[B, H, W, num_classes]` float32 and `features` `[B, H, W, filters]`.

    Example:
        >>> maps = [tf.zeros([1, 16, 24, 4]), tf.zeros([1, 8, 12, 4])]
        >>> SemanticHead(5, num_levels=2, filters=8)(maps)["logits"].shape
        TensorShape([1, 8, 12, 5])

    Source: HTC (arXiv 1901.07518), section 3.2 and figure 3.
    """

    def __init__(
        self,
        num_classes: int,
        num_levels: int = 5,
        filters: int = 256,
        num_convs: int = 4,
        fusion_level: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_levels = num_levels
        self.filters = filters
        self.num_convs = num_convs
        self.fusion_level = fusion_level
        self.fusions = [self._conv(filters, 1, f"fusion_{i}") for i in range(num_levels)]
        self.convs = [self._conv(filters, 3, f"conv_{i}") for i in range(num_convs)]
        self.embedding = self._conv(filters, 1, "embedding")
        self.class_map = self._conv(num_classes, 1, "class_map")

    def _conv(self, filters, side, name):
        return SymmetricConv2D(filters, side, dtype=self.dtype_policy, name=name)

    def build(self, pyramid_shape):
        for conv, shape in zip(self.fusions, pyramid_shape):
            conv.build(tuple(shape))
        shape = (*tuple(pyramid_shape[self.fusion_level])[:-1], self.filters)
        for conv in (*self.convs, self.embedding, self.class_map):
            conv.build(shape)
        self.built = True

    def call(self, pyramid):
        goal = pyramid[self.fusion_level]
        dynamic = tf.shape(goal)
        size = tuple(dynamic[i] if goal.shape[i] is None else goal.shape[i] for i in (1, 2))
        terms = []
        for level, (conv, x) in enumerate(zip(self.fusions, pyramid)):
            x = x if level == self.fusion_level else resize_bilinear_align_corners(x, size)
            terms.append(tf.nn.relu(conv(x)))
        x = tf.add_n(terms)
        for conv in self.convs:
            x = tf.nn.relu(conv(x))
        return {
            "logits": tf.cast(self.class_map(x), tf.float32),
            "features": tf.nn.relu(self.embedding(x)),
        }

    def compute_output_shape(self, pyramid_shape):
        shape = tuple(pyramid_shape[self.fusion_level])[:-1]
        return {"logits": (*shape, self.num_classes), "features": (*shape, self.filters)}

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "num_levels": self.num_levels,
            "filters": self.filters,
            "num_convs": self.num_convs,
            "fusion_level": self.fusion_level,
        }


@keras.saving.register_keras_serializable(package="sepc_tf")
@dataclasses.dataclass(frozen=True)
class SemanticBranch(SavedByParts):
    """A semantic head, and how its features come to boxes.

    Args:
        pooler: of one level, that of the head's features.
        head: from a pyramid to logits and features.
        loss_weight: factor of the loss.
    """

    pooler: RoIAlign
    head: SemanticHead
    loss_weight: float = 0.2

    def pooled(self, outputs: dict, boxes: tf.Tensor, present: tf.Tensor, size: int) -> tf.Tensor:
        """Features `[B, R, size, size, C]` of boxes; means where the pooler's size is larger.

        Args:
            outputs: what the head returned.
            boxes, present: `[B, R, 4]` and `[B, R]`.
            size: of which the pooler's is a multiple.
        """
        x = self.pooler([outputs["features"]], boxes, present)
        factor = self.pooler.size // size
        if factor == 1:
            return x
        shape = tf.shape(x)
        x = tf.reshape(x, [shape[0], shape[1], size, factor, size, factor, x.shape[-1]])
        return tf.reduce_mean(x, axis=(3, 5))

    def loss(self, outputs: dict, batch: dict) -> tf.Tensor:
        """`loss_weight` times the mean cross entropy of the cells that are known.

        The mean is over the whole batch over all replicas.

        Args:
            outputs: what the head returned.
            batch: with `semantic` `[B, H, W]`, a label for each pixel of the images, `UNKNOWN` for
                none, see `labels_of_maps`. Without it the labels are made of the masks, see
                `labels_of_masks`.
        """
        logits = outputs["logits"]
        stride, size = self.pooler.strides[0], tf.shape(logits)[1:3]
        if "semantic" in batch:
            labels = labels_of_maps(batch["semantic"], stride, size, self.pooler.convention)
        else:
            labels = labels_of_masks(batch, stride, size)
        known = labels != UNKNOWN
        count = all_reduce_sum([tf.reduce_sum(tf.cast(known, tf.float32))])[0]
        entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.where(known, labels, 0), logits=logits
        )
        total = tf.reduce_sum(tf.where(known, entropies, 0.0))
        return self.loss_weight * total / tf.maximum(count, 1.0)
