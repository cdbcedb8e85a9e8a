"""FSAF: feature selective anchor-free detection."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.anchor_based import AnchorDetector
from sepc_tf.detectors.base import all_reduce_sum
from sepc_tf.detectors.dense import as_list, level_sizes, pyramid_strides
from sepc_tf.detectors.heads import PredictionHead
from sepc_tf.ops.anchors import AnchorGenerator
from sepc_tf.ops.coders import TBLRCoder
from sepc_tf.ops.losses import sigmoid_focal_loss, tblr_iou_loss
from sepc_tf.ops.matching import IGNORED, EffectiveAreaMatcher, gather_matched
from sepc_tf.settings import setting

# The loss of an object on a level where it has no cell.
NO_CELLS = 1e6


@dataclasses.dataclass
class FSAFOptions:
    """`detector.options` of an FSAF."""

    strides: list[int] | None = setting(None, at_least=1)  # null: those of the pyramid
    area_scale: float = setting(0.2, above=0, at_most=1)  # side of the effective area of a box
    min_coverage: float = setting(0.01, at_least=0, below=1)  # of a cell by the effective area
    prior: float = setting(0.01, above=0, below=1)  # every score at the start
    box_bias: float = setting(1.0)  # every distance at the start, in strides
    focal_alpha: float = setting(0.25, at_least=0, at_most=1)
    focal_gamma: float = setting(2.0, at_least=0)
    classification_weight: float = setting(1.0, at_least=0)
    box_weight: float = setting(1.0, at_least=0)


@keras.saving.register_keras_serializable(package="sepc_tf")
class FSAF(AnchorDetector):
    """One cell, one prediction; every object is learnt on the level that predicts it best.

    Objects want cells on all levels (`EffectiveAreaMatcher`). Per object and level the mean loss
    of its cells (focal loss of all classes + IoU loss) is taken; the object keeps the level of the
    smallest mean (the first of equals). On its other levels its cells have no box loss and no
    focal loss for its own class. `classification = w_c * sum of focal losses / P`,
    `box = w_b * sum of -ln IoU / P`, P = number of kept cells in the whole batch over all replicas,
    at least 1. IoUs are computed in units of the stride.

    Args:
        backbone, necks, towers, head, anchor_generator: see `AnchorDetector`; one square anchor
            of the size of the stride in each cell, and a head with `box_activation="relu"`.
        coder: `TBLRCoder`.
        matcher: `EffectiveAreaMatcher`.
        focal_alpha: weight of positives in the focal loss.
        focal_gamma: its exponent.
        classification_weight: w_c.
        box_weight: w_b.
        **settings: of `AnchorDetector` and `DenseDetector`.

    Example:
        >>> detector = FSAF.from_parts(
        ...     ResNet(18, width=8), FPN(16), SEPC.variant("sepc_lite", filters=16), num_classes=3)
        >>> detector.head.num_anchors
        1

    Source: arXiv 1903.00621 (anchor-free branch alone); the authors' settings.
    """

    Options = FSAFOptions

    def __init__(
        self,
        backbone: keras.layers.Layer,
        necks: Any,
        towers: keras.layers.Layer,
        head: keras.layers.Layer,
        *,
        matcher: EffectiveAreaMatcher,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        classification_weight: float = 1.0,
        box_weight: float = 1.0,
        **settings: Any,
    ) -> None:
        if head.box_activation != "relu":
            raise ValueError(
                'head.box_activation must be "relu": the box code is made of distances; '
                f"got {head.box_activation!r}"
            )
        super().__init__(backbone, necks, towers, head, matcher=matcher, **settings)
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.classification_weight = classification_weight
        self.box_weight = box_weight

    @classmethod
    def from_parts(
        cls, backbone, necks, towers, num_classes, convention="modern", options=None, **settings
    ):
        options = options or cls.Options()
        head = PredictionHead(
            num_classes,
            num_anchors=1,
            box_activation="relu",
            box_bias=options.box_bias,
            prior=options.prior,
            name="head",
        )
        return cls(
            backbone,
            necks,
            towers,
            head,
            anchor_generator=AnchorGenerator(
                strides=options.strides or pyramid_strides(as_list(necks)),
                octave_base=1.0,
                scales_per_octave=1,
                ratios=(1.0,),
                convention=convention,
            ),
            coder=TBLRCoder(convention=convention),
            matcher=EffectiveAreaMatcher(options.area_scale, options.min_coverage, convention),
            focal_alpha=options.focal_alpha,
            focal_gamma=options.focal_gamma,
            classification_weight=options.classification_weight,
            box_weight=options.box_weight,
            **settings,
        )

    def compute_losses(self, outputs, batch):
        targets = self.label_anchors(outputs, batch)
        focal, iou_loss = self.cell_losses(outputs, targets)
        num_boxes = tf.shape(batch["boxes"])[1]
        kept = self.select_levels(outputs, targets, focal, iou_loss, num_boxes)["kept"]
        matched = targets["matches"] >= 0
        given_up = tf.one_hot(
            tf.where(matched & ~kept, targets["classes"], -1), self.num_classes, True, False, axis=2
        )
        counted = (targets["matches"] != IGNORED)[..., None] & ~given_up
        normaliser = all_reduce_sum([tf.reduce_sum(tf.cast(kept, tf.float32))])[0]
        normaliser = tf.maximum(normaliser, 1.0)
        return {
            "classification": self.classification_weight
            * tf.reduce_sum(tf.where(counted, focal, 0.0))
            / normaliser,
            "box": self.box_weight * tf.reduce_sum(tf.where(kept, iou_loss, 0.0)) / normaliser,
        }

    def cell_losses(self, outputs, targets):
        """Focal losses `[B, N, K]` and IoU losses `[B, N]` of all cells."""
        logits, codes = (tf.concat(levels, axis=1) for levels in self.flatten_outputs(outputs))
        focal = sigmoid_focal_loss(
            tf.one_hot(targets["classes"], self.num_classes),
            logits,
            self.focal_alpha,
            self.focal_gamma,
        )
        return focal, tblr_iou_loss(targets["codes"], codes)

    def select_levels(self, outputs, targets, focal, iou_loss, num_boxes):
        """Chooses the level of each object.

        Args:
            outputs, targets: as in `cell_losses`.
            focal, iou_loss: what `cell_losses` returned.
            num_boxes: M, the number of (padded) objects of an image.

        Returns:
            dict of `mean_losses` `[B, M, L]` float32 (`NO_CELLS` where an object has no cell on
            the level), `levels` `[B, M]` int32 and `kept` `[B, N]` bool: the cell is matched and on
            its object's level.
        """
        matches = targets["matches"]
        matched = matches >= 0
        batch, num_levels = tf.shape(matches)[0], len(self.anchor_generator.strides)
        level = tf.concat(
            [
                tf.fill([height * width], i)
                for i, (height, width) in enumerate(level_sizes(outputs))
            ],
            axis=0,
        )
        # One segment for each (image, object, level); cells without an object belong to none.
        image = tf.range(batch)[:, None]
        segment = (image * num_boxes + matches) * num_levels + level
        segment = tf.where(matched, segment, -1)
        cell_loss = tf.stop_gradient(tf.reduce_sum(focal, axis=2) + iou_loss)
        sums, counts = (
            tf.math.unsorted_segment_sum(x, segment, batch * num_boxes * num_levels)
            for x in (cell_loss, tf.ones_like(cell_loss))
        )
        means = tf.where(counts > 0, sums / tf.maximum(counts, 1.0), NO_CELLS)
        means = tf.reshape(means, [batch, num_boxes, num_levels])
        levels = tf.argmin(means, axis=2, output_type=tf.int32)
        return {
            "mean_losses": means,
            "levels": levels,
            "kept": matched & (gather_matched(levels, matches) == level),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "focal_alpha": self.focal_alpha,
            "focal_gamma": self.focal_gamma,
            "classification_weight": self.classification_weight,
            "box_weight": self.box_weight,
        }
