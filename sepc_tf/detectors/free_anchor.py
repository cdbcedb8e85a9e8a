"""FreeAnchor: learning to match anchors."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.anchor_based import AnchorDetector, AnchorOptions
from sepc_tf.detectors.base import all_reduce_sum
from sepc_tf.detectors.dense import as_list, pyramid_strides
from sepc_tf.detectors.heads import PredictionHead
from sepc_tf.ops.boxes import has_area, pairwise_iou
from sepc_tf.ops.chunks import map_boxes
from sepc_tf.ops.coders import BoxCoder
from sepc_tf.ops.losses import smooth_l1_loss
from sepc_tf.settings import setting

SMALLEST = 1e-12
LARGEST_LOG = 100.0
SMALLEST_REST = 1e-37  # close to the smallest normal float32


@dataclasses.dataclass
class FreeAnchorOptions:
    """`detector.options` of a FreeAnchor."""

    anchors: AnchorOptions = setting(AnchorOptions())
    box_stds: list[float] = setting([0.1, 0.1, 0.2, 0.2], above=0)  # of the box code
    prior: float = setting(0.01, above=0, below=1)  # every score at the start
    bag_size: int = setting(50, at_least=1)
    box_iou: float = setting(0.6, at_least=0, below=1)
    alpha: float = setting(0.5, at_least=0, at_most=1)
    gamma: float = setting(2.0, at_least=0)
    smooth_l1_beta: float = setting(0.11, above=0)
    box_weight: float = setting(0.75, at_least=0)


@keras.saving.register_keras_serializable(package="sepc_tf")
class FreeAnchor(AnchorDetector):
    """Every object has a bag of anchors, of which at least one should detect it.

    - The bag of object i holds the `bag_size` anchors of highest IoU. With s_ij the anchor's score
      for the object's class and `l_ij = exp(-smooth L1 of its box)`, `p_ij = s_ij l_ij`:
      `positive_bag = alpha sum_i -ln(sum_j w_ij p_ij / sum_j w_ij) / G`, `w = 1 / (1 - p)`
      (mean-max: near the mean while all are bad, near the best one later).
    - Of an anchor j and a class c, let b_jc in [0, 1] say how well the box predicted there already
      covers an object of the class: its IoU, scaled so that `box_iou` is 0 and the object's best
      IoU is 1. With `q_jc = s_jc (1 - b_jc)`:
      `negative_bag = (1 - alpha) sum_jc -q^gamma ln(1 - q) / (G bag_size)`.

    G = number of objects in the whole batch over all replicas, at least 1. `-ln` stops at 100 in
    the positive and at 85 in the negative part. No gradient flows through b.

    Args:
        backbone, necks, towers, head, anchor_generator, coder: see `AnchorDetector`.
        bag_size: anchors of a bag.
        box_iou: IoU below which a predicted box covers nothing.
        alpha: weight of the positive part.
        gamma: exponent of the negative part.
        smooth_l1_beta: where smooth L1 turns linear.
        box_weight: factor of smooth L1.
        **settings: of `AnchorDetector` and `DenseDetector`.

    Example:
        >>> detector = FreeAnchor.from_parts(
        ...     ResNet(18, width=8), FPN(16), SEPC.variant("sepc_lite", filters=16), num_classes=3)
        >>> detector.loss_names
        ('positive_bag', 'negative_bag')

    Source: arXiv 1909.02466, equations 5 to 8.
    """

    Options = FreeAnchorOptions
    loss_names = ("positive_bag", "negative_bag")

    def __init__(
        self,
        backbone: keras.layers.Layer,
        necks: Any,
        towers: keras.layers.Layer,
        head: keras.layers.Layer,
        *,
        bag_size: int = 50,
        box_iou: float = 0.6,
        alpha: float = 0.5,
        gamma: float = 2.0,
        smooth_l1_beta: float = 0.11,
        box_weight: float = 0.75,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, necks, towers, head, **settings)
        self.bag_size = bag_size
        self.box_iou = box_iou
        self.alpha = alpha
        self.gamma = gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.box_weight = box_weight

    @classmethod
    def from_parts(
        cls, backbone, necks, towers, num_classes, convention="modern", options=None, **settings
    ):
        options = options or cls.Options()
        anchors = options.anchors.generator(pyramid_strides(as_list(necks)), convention)
        head = PredictionHead(
            num_classes, anchors.anchors_per_cell, prior=options.prior, name="head"
        )
        return cls(
            backbone,
            necks,
            towers,
            head,
            anchor_generator=anchors,
            coder=BoxCoder(stds=options.box_stds, convention=convention),
            bag_size=options.bag_size,
            box_iou=options.box_iou,
            alpha=options.alpha,
            gamma=options.gamma,
            smooth_l1_beta=options.smooth_l1_beta,
            box_weight=options.box_weight,
            **settings,
        )

    def compute_losses(self, outputs, batch):
        anchors = tf.concat(self.anchors(outputs), axis=0)
        logits, codes = (tf.concat(levels, axis=1) for levels in self.flatten_outputs(outputs))
        boxes = tf.cast(batch["boxes"], tf.float32)
        labels = tf.cast(batch["labels"], tf.int32)
        labels = tf.where(has_area(boxes, self.convention), labels, -1)
        present = labels >= 0
        # Padding becomes a real box somewhere, so that nothing about it is infinite.
        boxes = tf.where(present[..., None], boxes, tf.constant([0.0, 0.0, 1.0, 1.0]))

        objects = all_reduce_sum([tf.reduce_sum(tf.cast(present, tf.float32))])[0]
        objects = tf.maximum(objects, 1.0)
        bags = self.select_bags(anchors, boxes)
        positive = self.bag_losses(anchors, bags, logits, codes, boxes, labels)
        covered = tf.stop_gradient(self.coverage(anchors, codes, boxes, labels))
        negative = self.negative_losses(logits, covered)
        return {
            "positive_bag": tf.reduce_sum(tf.where(present, positive, 0.0)) / objects,
            "negative_bag": tf.reduce_sum(negative) / (objects * self.bag_size),
        }

    def select_bags(self, anchors, boxes):
        """Anchor indices of the bag of each box: `[B, M, bag_size]` int32."""

        def few(boxes):
            ious = pairwise_iou(boxes, anchors, self.coder.convention)
            return tf.math.top_k(ious, k=self.bag_size).indices

        return map_boxes(few, boxes, tf.int32)

    def bag_losses(self, anchors, bags, logits, codes, boxes, labels):
        """The positive loss of each box: `[B, M]`; meaningless for padding."""
        shape = tf.shape(bags)
        rows = tf.reshape(bags, [shape[0], -1])
        # [batch, boxes, bag, ...]
        bag_codes = tf.gather(codes, rows, axis=1, batch_dims=1)
        bag_codes = tf.reshape(bag_codes, [*tf.unstack(shape), 4])
        targets = self.coder.encode(tf.gather(anchors, bags), boxes[:, :, None])
        box_loss = smooth_l1_loss(targets, bag_codes, self.smooth_l1_beta)
        box_loss = self.box_weight * tf.reduce_sum(box_loss, axis=-1)
        # One number per anchor of the bag, instead of its whole row of classes.
        columns = tf.repeat(tf.maximum(labels, 0), shape[2], axis=1)
        cells = tf.stack([rows, columns], axis=-1)
        bag_logits = tf.reshape(tf.gather_nd(logits, cells, batch_dims=1), shape)
        # In logarithms: p may underflow, and 1 - p lose all its digits.
        log_p = tf.math.log_sigmoid(bag_logits) - box_loss
        log_weight = -tf.math.log(tf.maximum(-tf.math.expm1(log_p), SMALLEST))
        log_bag = tf.reduce_logsumexp(log_weight + log_p, axis=2)
        log_bag -= tf.reduce_logsumexp(log_weight, axis=2)
        return self.alpha * tf.minimum(-log_bag, LARGEST_LOG)

    def coverage(self, anchors, codes, boxes, labels):
        """How well each anchor's predicted box covers an object of each class: `[B, N, K]`."""
        predicted = self.coder.decode(anchors, tf.stop_gradient(codes))
        batch, count = tf.unstack(tf.shape(labels))
        # One segment for each image and class; padding (label -1) belongs to none.
        segments = tf.range(batch)[:, None] * self.num_classes + labels
        segments = tf.reshape(tf.where(labels >= 0, segments, -1), [-1])

        def best_of_box(few):
            ious = pairwise_iou(few[:, :, None], predicted, self.coder.convention)
            return tf.reduce_max(ious, axis=[2, 3])

        best = map_boxes(best_of_box, boxes, tf.float32)
        best = tf.maximum(best, self.box_iou)[:, :, None]

        def some_anchors(predicted):
            predicted = tf.transpose(predicted, [1, 0, 2])
            ious = pairwise_iou(boxes, predicted, self.coder.convention)  # [batch, boxes, anchors]
            above = tf.maximum(ious - self.box_iou, 0.0)
            covered = tf.minimum(tf.math.divide_no_nan(above, best - self.box_iou), 1.0)
            covered = tf.reshape(covered, [batch * count, -1])
            # The best over the objects of each class.
            covered = tf.math.unsorted_segment_max(covered, segments, batch * self.num_classes)
            covered = tf.transpose(tf.maximum(covered, 0.0))
            return tf.reshape(covered, [-1, batch, self.num_classes])

        # Fewer anchors the more boxes there are.
        at_once = tf.shape(anchors)[0] // (8 + count // 8) + 1
        return map_boxes(some_anchors, predicted, tf.float32, at_once)

    def negative_losses(self, logits, covered):
        """The negative loss of each anchor and class: `[B, N, K]`."""

        def parts(logits):
            scores = tf.sigmoid(logits)
            missed = scores * (1.0 - covered)
            # 1 - s (1 - b) without cancellation
            rest = tf.sigmoid(-logits) + scores * covered
            return (1.0 - self.alpha) * missed**self.gamma, missed, rest

        # TensorFlow would hold seven arrays of this size for the backward pass.
        @tf.custom_gradient
        def losses(logits):
            weight, _, rest = parts(logits)

            def gradient(upstream):
                weight, missed, rest = parts(logits)
                log_rest = tf.math.log(tf.maximum(rest, SMALLEST_REST))
                slope = tf.where(rest < SMALLEST_REST, 0.0, missed / rest) - self.gamma * log_rest
                return upstream * weight * tf.sigmoid(-logits) * slope

            return weight * -tf.math.log(tf.maximum(rest, SMALLEST_REST)), gradient

        return losses(logits)

    def get_config(self):
        return {
            **super().get_config(),
            "bag_size": self.bag_size,
            "box_iou": self.box_iou,
            "alpha": self.alpha,
            "gamma": self.gamma,
            "smooth_l1_beta": self.smooth_l1_beta,
            "box_weight": self.box_weight,
        }
