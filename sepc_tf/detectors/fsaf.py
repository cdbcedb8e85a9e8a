"""FSAF: feature selective anchor-free detection."""

import keras
import tensorflow as tf

from sepc_tf.detectors.base import Detector, all_reduce_sum, check_same_convention, level_sizes
from sepc_tf.detectors.heads import PredictionHead
from sepc_tf.ops.anchors import AnchorGenerator
from sepc_tf.ops.coders import TBLRCoder
from sepc_tf.ops.losses import sigmoid_focal_loss, tblr_iou_loss
from sepc_tf.ops.matching import IGNORED, EffectiveAreaMatcher, gather_matched

# The loss of an object on a level where it has no cell.
NO_CELLS = 1e6


@keras.saving.register_keras_serializable(package="sepc_tf")
class FSAF(Detector):
    """One cell, one prediction; every object is learnt on the level that predicts it best.

    Objects want cells on all levels (`EffectiveAreaMatcher`). Per object and level the mean loss
    of its cells (focal loss of all classes + IoU loss) is taken; the object keeps the level of the
    smallest mean (the first of equals). On its other levels its cells have no box loss and no
    focal loss for its own class. `classification = sum of focal losses / P`,
    `box = sum of -ln IoU / P`, P = number of kept cells in the whole batch over all replicas, at
    least 1. IoUs are computed in units of the stride.

    Args:
        backbone, fpn, towers, head, anchor_generator: see `Detector`; one square anchor of the
            size of the stride in each cell, and a head with `box_activation="relu"`.
        coder: `TBLRCoder`.
        matcher: `EffectiveAreaMatcher`.
        focal_alpha: weight of positives in the focal loss.
        focal_gamma: its exponent.
        **kwargs: test settings and `name`, see `Detector`.

    Example:
        >>> detector = FSAF.from_parts(ResNet(50), FPN(), SEPC.variant("sepc"), 80)

    Source: arXiv 1903.00621 (anchor-free branch alone); the authors' settings.
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
        **kwargs,
    ):
        check_same_convention(coder=coder, matcher=matcher)
        if head.box_activation != "relu":
            raise ValueError(
                'head.box_activation must be "relu": the box code is made of distances; '
                f"got {head.box_activation!r}"
            )
        super().__init__(
            backbone, fpn, towers, head, anchor_generator=anchor_generator, coder=coder, **kwargs
        )
        self.matcher = matcher
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @classmethod
    def from_parts(cls, backbone, fpn, towers, num_classes, convention="modern", **options):
        return cls(
            backbone,
            fpn,
            towers,
            PredictionHead(num_classes, 1, box_activation="relu", box_bias=1.0, name="head"),
            anchor_generator=AnchorGenerator(
                octave_base=1.0, scales_per_octave=1, ratios=(1.0,), convention=convention
            ),
            coder=TBLRCoder(convention=convention),
            matcher=EffectiveAreaMatcher(convention=convention),
            **options,
        )

    def compute_losses(self, outputs, batch):
        targets = self.label_anchors(outputs, batch)
        focal, iou_loss = self.cell_losses(outputs, targets)
        kept = self.select_levels(outputs, targets, focal, iou_loss)["kept"]
        matched = targets["matches"] >= 0
        given_up = tf.one_hot(
            tf.where(matched & ~kept, targets["classes"], -1), self.num_classes, True, False, axis=2
        )
        counted = (targets["matches"] != IGNORED)[..., None] & ~given_up
        normaliser = all_reduce_sum([tf.reduce_sum(tf.cast(kept, tf.float32))])[0]
        normaliser = tf.maximum(normaliser, 1.0)
        return {
            "classification": tf.reduce_sum(tf.where(counted, focal, 0.0)) / normaliser,
            "box": tf.reduce_sum(tf.where(kept, iou_loss, 0.0)) / normaliser,
        }

    def label_anchors(self, outputs, batch):
        """What each cell should predict, before levels are selected.

        Args:
            outputs, batch: as in `compute_losses`.

        Returns:
            dict, levels concatenated, N cells: `matches` `[B, N]` int32 (index of a box, BACKGROUND
            or IGNORED of `sepc_tf.ops.matching`), `classes` `[B, N]` int32 (-1 where nothing is
            matched), `codes` `[B, N, 4]` float32, and `num_boxes`, M.
        """
        anchors = tf.concat(self.anchors(outputs), axis=0)
        boxes = tf.cast(batch["boxes"], tf.float32)
        labels = tf.cast(batch["labels"], tf.int32)
        valid = self.anchor_generator.valid(level_sizes(outputs), batch["image_sizes"])
        matches = self.matcher(anchors, boxes, labels >= 0, valid)
        matched = matches >= 0
        targets = tf.where(matched[..., None], gather_matched(boxes, matches), anchors)
        return {
            "matches": matches,
            "classes": tf.where(matched, gather_matched(labels, matches), -1),
            "codes": self.coder.encode(anchors, targets),
            "num_boxes": tf.shape(boxes)[1],
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

    def select_levels(self, outputs, targets, focal, iou_loss):
        """Chooses the level of each object.

        Args:
            outputs, targets: as in `cell_losses`.
            focal, iou_loss: what `cell_losses` returned.

        Returns:
            dict of `mean_losses` `[B, M, L]` float32 (`NO_CELLS` where an object has no cell on
            the level), `levels` `[B, M]` int32 and `kept` `[B, N]` bool: the cell is matched and on
            its object's level.
        """
        matches, num_boxes = targets["matches"], targets["num_boxes"]
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
            "matcher": keras.saving.serialize_keras_object(self.matcher),
            "focal_alpha": self.focal_alpha,
            "focal_gamma": self.focal_gamma,
        }
