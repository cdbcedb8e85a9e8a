"""RetinaNet."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.anchor_based import AnchorDetector, AnchorOptions
from sepc_tf.detectors.base import all_reduce_sum
from sepc_tf.detectors.dense import as_list, pyramid_strides
from sepc_tf.detectors.heads import PredictionHead
from sepc_tf.ops.coders import BoxCoder
from sepc_tf.ops.losses import iou_loss, sigmoid_focal_loss, smooth_l1_loss
from sepc_tf.ops.matching import IGNORED, MaxIoUMatcher
from sepc_tf.settings import check_unused, setting

BOX_LOSSES = ("smooth_l1", "iou", "giou")


@dataclasses.dataclass
class RetinaNetOptions:
    """`detector.options` of a RetinaNet."""

    anchors: AnchorOptions = setting(AnchorOptions())
    box_stds: list[float] = setting([1.0, 1.0, 1.0, 1.0], above=0)  # of the box code
    positive_iou: float = setting(0.5, at_least=0, at_most=1)  # from it on an object
    negative_iou: float = setting(0.4, at_least=0, at_most=1)  # below it background
    prior: float = setting(0.01, above=0, below=1)  # every score at the start
    focal_alpha: float = setting(0.25, at_least=0, at_most=1)
    focal_gamma: float = setting(2.0, at_least=0)
    classification_weight: float = setting(1.0, at_least=0)
    box_loss: str = setting("smooth_l1", choices=BOX_LOSSES)
    smooth_l1_beta: float = setting(0.11, above=0)
    box_weight: float = setting(1.0, at_least=0)


@keras.saving.register_keras_serializable(package="sepc_tf")
class RetinaNet(AnchorDetector):
    """Focal loss over all anchors, a box loss on the matched ones.

    `classification = w_c * sum of focal losses / P`, `box = w_b * sum of box losses / P`, P =
    number of matched anchors in the whole batch over all replicas, each image counting at least 1.
    The box loss of an anchor is smooth L1 of its code, summed over the 4 coordinates, or `-ln IoU`
    or `1 - GIoU` of its box.

    Args:
        backbone, necks, towers, head, anchor_generator, coder: see `AnchorDetector`.
        matcher: `MaxIoUMatcher`.
        focal_alpha: weight of positives in the focal loss.
        focal_gamma: its exponent.
        classification_weight: w_c.
        box_loss: "smooth_l1", "iou" or "giou".
        smooth_l1_beta: where smooth L1 turns linear.
        box_weight: w_b.
        **settings: of `AnchorDetector` and `DenseDetector`.

    Example:
        >>> detector = RetinaNet.from_parts(
        ...     ResNet(18, width=8), FPN(16), SEPC.variant("sepc_lite", filters=16), num_classes=3)
        >>> detector.compile(keras.optimizers.SGD(0.01, momentum=0.9), clip_norm=35.0)
        >>> detector(tf.zeros([1, 64, 96, 3]))["box"][0].shape
        TensorShape([1, 8, 12, 36])

    Source: arXiv 1708.02002.
    """

    Options = RetinaNetOptions

    def __init__(
        self,
        backbone: keras.layers.Layer,
        necks: Any,
        towers: keras.layers.Layer,
        head: keras.layers.Layer,
        *,
        matcher: MaxIoUMatcher,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        classification_weight: float = 1.0,
        box_loss: str = "smooth_l1",
        smooth_l1_beta: float = 0.11,
        box_weight: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, necks, towers, head, matcher=matcher, **settings)
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss must be one of {BOX_LOSSES}, got {box_loss!r}")
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.classification_weight = classification_weight
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta
        self.box_weight = box_weight

    @classmethod
    def from_parts(
        cls, backbone, necks, towers, num_classes, convention="modern", options=None, **settings
    ):
        options = options or cls.Options()
        if options.box_loss != "smooth_l1":
            reason = f"box_loss: {options.box_loss}"
            check_unused(options, ("smooth_l1_beta",), "detector.options.", reason)
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
            matcher=MaxIoUMatcher(options.positive_iou, options.negative_iou, convention),
            focal_alpha=options.focal_alpha,
            focal_gamma=options.focal_gamma,
            classification_weight=options.classification_weight,
            box_loss=options.box_loss,
            smooth_l1_beta=options.smooth_l1_beta,
            box_weight=options.box_weight,
            **settings,
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
        positives = tf.reduce_sum(tf.cast(matched, tf.float32), axis=1)
        normaliser = all_reduce_sum([tf.reduce_sum(tf.maximum(positives, 1.0))])[0]
        box = self._box_losses(outputs, codes, targets)
        return {
            "classification": self.classification_weight
            * tf.reduce_sum(tf.where(counted[..., None], focal, 0.0))
            / normaliser,
            "box": self.box_weight * tf.reduce_sum(tf.where(matched, box, 0.0)) / normaliser,
        }

    def _box_losses(self, outputs, codes, targets):
        """The box loss of each anchor, `[B, N]`; meaningless where nothing is matched."""
        if self.box_loss == "smooth_l1":
            return tf.reduce_sum(
                smooth_l1_loss(targets["codes"], codes, self.smooth_l1_beta), axis=2
            )
        boxes = self.coder.decode(tf.concat(self.anchors(outputs), axis=0), codes)
        return iou_loss(targets["boxes"], boxes, self.box_loss, self.convention)

    def get_config(self):
        return {
            **super().get_config(),
            "focal_alpha": self.focal_alpha,
            "focal_gamma": self.focal_gamma,
            "classification_weight": self.classification_weight,
            "box_loss": self.box_loss,
            "smooth_l1_beta": self.smooth_l1_beta,
            "box_weight": self.box_weight,
        }
