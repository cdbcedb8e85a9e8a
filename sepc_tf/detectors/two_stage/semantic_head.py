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
from sepc_tf.ops.bitmaps import NO_MASK, read_bitmaps
from sepc_tf.ops.resize import resize_bilinear_align_corners

UNKNOWN = 255  # the label of cells that are not learnt from


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
            batch: with `semantic` `[B, H, W]`, a label for each cell, `UNKNOWN` for none. Without
                it the labels are made of the masks, see `labels_of_masks`.
        """
        logits = outputs["logits"]
        if "semantic" in batch:
            labels = tf.cast(batch["semantic"], tf.int32)
        else:
            labels = labels_of_masks(batch, self.pooler.strides[0], tf.shape(logits)[1:3])
        known = labels != UNKNOWN
        count = all_reduce_sum([tf.reduce_sum(tf.cast(known, tf.float32))])[0]
        entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.where(known, labels, 0), logits=logits
        )
        total = tf.reduce_sum(tf.where(known, entropies, 0.0))
        return self.loss_weight * total / tf.maximum(count, 1.0)


def labels_of_masks(batch: dict, stride: int, size: tf.Tensor) -> tf.Tensor:
    """A semantic map of instance masks: 0 is background, class c has the label c + 1.

    A cell has the label of the mask at the pixel in its middle, that of the smallest box where
    there are several. Cells outside the image, and those inside the box of an object without a
    mask that no mask covers, are `UNKNOWN`.

    Args:
        batch: with `labels`, `boxes`, `image_sizes` and the masks, see `sepc_tf.ops.bitmaps`.
        stride: of the cells, in pixels.
        size: int32 `[2]`, rows and columns of cells.

    Returns:
        `[B, H, W]` int32.
    """
    labels = tf.cast(batch["labels"], tf.int32)
    boxes = tf.cast(batch["boxes"], tf.float32)
    real = labels >= 0
    rows, columns = (stride // 2 + stride * tf.range(size[i]) for i in range(2))
    rows, columns = rows[None, None, :, None], columns[None, None, None]
    objects = tf.broadcast_to(tf.range(tf.shape(labels)[1])[None], tf.shape(labels))
    masks = (batch[name] for name in ("bitmaps", "frames", "offsets"))
    like_objects = [tf.shape(labels)[0], tf.shape(labels)[1], 1, 1]
    covered = read_bitmaps(*masks, objects, rows, columns) > 0
    covered &= tf.reshape(real, like_objects)
    x1, y1, x2, y2 = (tf.reshape(x, like_objects) for x in tf.unstack(boxes, axis=-1))
    y, x = (tf.cast(v, tf.float32) + 0.5 for v in (rows, columns))
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
    vague = inside & tf.reshape(real & (batch["offsets"] == NO_MASK), like_objects)
    areas = tf.where(covered, (x2 - x1) * (y2 - y1), tf.float32.max)
    smallest = tf.argmin(areas, axis=1, output_type=tf.int32)  # [B, H, W]
    own = tf.gather(labels, tf.reshape(smallest, [tf.shape(labels)[0], -1]), batch_dims=1)
    own = tf.reshape(own, tf.shape(smallest)) + 1
    vague = tf.reduce_any(vague, axis=1)
    found = tf.where(tf.reduce_any(covered, axis=1), own, tf.where(vague, UNKNOWN, 0))
    heights, widths = (tf.reshape(v, [-1, 1, 1]) for v in tf.unstack(batch["image_sizes"], axis=1))
    return tf.where((rows[0] < heights) & (columns[0] < widths), found, UNKNOWN)
