"""RetinaNet."""

import keras
import tensorflow as tf

from sepc_tf.detectors.base import Detector, all_reduce_sum, check_same_convention, level_sizes
from sepc_tf.detectors.heads import PredictionHead
from sepc_tf.ops.anchors import AnchorGenerator
from sepc_tf.ops.coders import BoxCoder
from sepc_tf.ops.losses import sigmoid_focal_loss, smooth_l1_loss
from sepc_tf.ops.matching import IGNORED, MaxIoUMatcher, gather_matched


@keras.saving.register_keras_serializable(package="sepc_tf")
class RetinaNet(Detector):
    """Focal loss over all anchors, smooth L1 on the matched ones.

    `classification = sum of focal losses / P`, `box = sum of smooth L1 over 4 coordinates / P`,
    P = number of matched anchors in the whole batch over all replicas, each image counting at
    least 1.

    Args:
        backbone, fpn, towers, head, anchor_generator, coder: see `Detector`.
        matcher: `MaxIoUMatcher`.
        focal_alpha: weight of positives in the focal loss.
        focal_gamma: its exponent.
        smooth_l1_beta: where smooth L1 turns linear.
        **kwargs: test settings and `name`, see `Detector`.

    Example:
        >>> detector = RetinaNet.from_parts(ResNet(50), FPN(), SEPC.variant("sepc_lite"), 80)
        >>> detector.compile(keras.optimizers.SGD(0.01, momentum=0.9), clip_norm=35.0)
        >>> detector.fit(dataset)

    Source: arXiv 1708.02002.
    """

    def __init__(
        self,
        backbone,
        fpn,
        towers,
        head,
        *,
        anchor_generator,
        coder,
        matcher,
        focal_alpha=0.25,
        focal_gamma=2.0,
        smooth_l1_beta=0.11,
        **kwargs,
    ):
        check_same_convention(coder=coder, matcher=matcher)
        super().__init__(
            backbone, fpn, towers, head, anchor_generator=anchor_generator, coder=coder, **kwargs
        )
        self.matcher = matcher
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_parts(cls, backbone, fpn, towers, num_classes, convention="modern", **options):
        anchor_generator = AnchorGenerator(convention=convention)
        return cls(
            backbone,
            fpn,
            towers,
            PredictionHead(num_classes, anchor_generator.anchors_per_cell, name="head"),
            anchor_generator=anchor_generator,
            coder=BoxCoder(convention=convention),
            matcher=MaxIoUMatcher(convention=convention),
            **options,
        )

    def compute_losses(self, outputs, batch):
        targets = self.label_anchors(outputs, batch)
        logits, codes = (tf.concat(levels, axis=1) for levels in self.flatten_outputs(outputs))
        matched = targets["matches"] >= 0
        focal = sigmoid_focal_loss(
            tf.one_hot(targets["classes"], self.num_classes),
            logits,
            self.focal_alpha,
            self.focal_gamma,
        )
        counted = targets["matches"] != IGNORED
        smooth_l1 = smooth_l1_loss(targets["codes"], codes, self.smooth_l1_beta)
        positives = tf.reduce_sum(tf.cast(matched, tf.float32), axis=1)
        normaliser = all_reduce_sum([tf.reduce_sum(tf.maximum(positives, 1.0))])[0]
        return {
            "classification": _masked_sum(focal, counted) / normaliser,
            "box": _masked_sum(smooth_l1, matched) / normaliser,
        }

    def label_anchors(self, outputs, batch):
        """What each anchor should predict.

        Args:
            outputs, batch: as in `compute_losses`.

        Returns:
            dict, levels concatenated, N anchors: `matches` `[B, N]` int32 (index of a box,
            BACKGROUND or IGNORED of `sepc_tf.ops.matching`), `classes` `[B, N]` int32 (-1 where
            nothing is matched), `codes` `[B, N, 4]` float32 (0 where nothing is matched).
        """
        anchors = tf.concat(self.anchors(outputs), axis=0)
        boxes = tf.cast(batch["boxes"], tf.float32)
        labels = tf.cast(batch["labels"], tf.int32)
        valid = self.anchor_generator.valid(level_sizes(outputs), batch["image_sizes"])
        matches = self.matcher(anchors, boxes, labels >= 0, valid)
        matched = matches >= 0
        # Encoding an anchor as itself keeps the logarithm finite where nothing is matched.
        targets = tf.where(matched[..., None], gather_matched(boxes, matches), anchors)
        return {
            "matches": matches,
            "classes": tf.where(matched, gather_matched(labels, matches), -1),
            "codes": self.coder.encode(anchors, targets),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "matcher": keras.saving.serialize_keras_object(self.matcher),
            "focal_alpha": self.focal_alpha,
            "focal_gamma": self.focal_gamma,
            "smooth_l1_beta": self.smooth_l1_beta,
        }


def _masked_sum(values, mask):
    """Sum of the rows `values[b, n]` where `mask[b, n]`."""
    return tf.reduce_sum(tf.where(mask[..., None], values, 0.0))
