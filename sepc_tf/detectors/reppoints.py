"""RepPoints."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.base import all_reduce_sum
from sepc_tf.detectors.dense import DenseDetector, as_list, level_sizes, pyramid_strides
from sepc_tf.detectors.reppoints_head import RepPointsHead
from sepc_tf.ops.anchors import cells_on_images
from sepc_tf.ops.boxes import clip_boxes, has_area
from sepc_tf.ops.losses import sigmoid_focal_loss, smooth_l1_loss
from sepc_tf.ops.matching import IGNORED, MaxIoUMatcher, gather_matched
from sepc_tf.ops.nms import top_candidates
from sepc_tf.ops.point_matching import NearestPointMatcher
from sepc_tf.ops.point_sets import TRANSFORMS
from sepc_tf.ops.points import grid_points
from sepc_tf.settings import check_unused, setting

# `ops` knows nothing of Keras; only saving needs this name.
keras.saving.register_keras_serializable(package="sepc_tf")(NearestPointMatcher)


@dataclasses.dataclass
class RepPointsOptions:
    """`detector.options` of a RepPoints."""

    strides: list[int] | None = setting(None, at_least=1)  # null: those of the pyramid
    num_points: int = setting(9, choices=(9, 25, 49))  # of a cell
    point_filters: int | None = setting(None, at_least=1)  # null: those of the towers
    transform: str = setting("moment", choices=TRANSFORMS)  # from points to a box
    moment_gradient_scale: float = setting(0.01, at_least=0)  # to the m of `moment`
    gradient_scale: float = setting(0.1, at_least=0)  # through the offsets to the first points
    point_scale: float = setting(4.0, above=0)  # side of an object in strides of its level
    positive_iou: float = setting(0.5, at_least=0, at_most=1)  # from it on an object
    negative_iou: float = setting(0.4, at_least=0, at_most=1)  # below it background
    prior: float = setting(0.01, above=0, below=1)  # every score at the start
    focal_alpha: float = setting(0.25, at_least=0, at_most=1)
    focal_gamma: float = setting(2.0, at_least=0)
    classification_weight: float = setting(1.0, at_least=0)
    smooth_l1_beta: float = setting(0.11, above=0)
    box_init_weight: float = setting(0.5, at_least=0)
    box_refine_weight: float = setting(1.0, at_least=0)


@keras.saving.register_keras_serializable(package="sepc_tf")
class RepPoints(DenseDetector):
    """Every cell predicts a set of points, and a better one seen through it; no anchors.

    The boxes of the first sets learn from `point_matcher`: each object has one cell. They are then
    what anchors are elsewhere: `matcher` compares them with the objects, which gives the classes
    and the boxes of the second sets to be learnt. With b a box divided by `point_scale * stride`:

        classification = w_c * sum of focal losses / P_refine
        box_init       = w_i * sum of smooth L1 of b, over 4 coordinates / P_init
        box_refine     = w_r * the same of the second sets / P_refine

    P = number of matched cells in the whole batch over all replicas, each image counting at least
    1. A set of points with the box (x1, y1, x2, y2), in a cell at (x, y), predicts the box
    (x + x1 stride, y + y1 stride, x + x2 stride, y + y2 stride).

    Args:
        backbone, necks, towers: see `DenseDetector`.
        head: `RepPointsHead`.
        point_matcher: `NearestPointMatcher`, one stride for each level.
        matcher: `MaxIoUMatcher`; its convention is the detector's.
        focal_alpha: weight of positives in the focal loss.
        focal_gamma: its exponent.
        classification_weight: w_c.
        smooth_l1_beta: where smooth L1 turns linear.
        box_init_weight: w_i.
        box_refine_weight: w_r.
        size_divisor: what padded image sides are multiples of: cells beyond an image's own padded
            size are not learnt from.
        **settings: further arguments of `DenseDetector`.

    Raises:
        ValueError: parts that do not fit together.

    Returns (from a call):
        What `RepPointsHead` returns.

    Example:
        >>> detector = RepPoints.from_parts(
        ...     ResNet(18, width=8), FPN(16), SEPC.variant("sepc_lite", filters=16), num_classes=3)
        >>> detector(tf.zeros([1, 64, 96, 3]))["points_refine"][0].shape
        TensorShape([1, 8, 12, 18])

    Source: arXiv 1904.11490.
    """

    Options = RepPointsOptions
    loss_names = ("classification", "box_init", "box_refine")

    def __init__(
        self,
        backbone: keras.layers.Layer,
        necks: Any,
        towers: keras.layers.Layer,
        head: RepPointsHead,
        *,
        point_matcher: NearestPointMatcher,
        matcher: MaxIoUMatcher,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        classification_weight: float = 1.0,
        smooth_l1_beta: float = 0.11,
        box_init_weight: float = 0.5,
        box_refine_weight: float = 1.0,
        size_divisor: int = 32,
        **settings: Any,
    ) -> None:
        settings["convention"] = matcher.convention
        super().__init__(backbone, necks, towers, head, **settings)
        self.point_matcher = point_matcher
        self.matcher = matcher
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.classification_weight = classification_weight
        self.smooth_l1_beta = smooth_l1_beta
        self.box_init_weight = box_init_weight
        self.box_refine_weight = box_refine_weight
        self.size_divisor = size_divisor
        levels = len(self.part_inputs((None, None, None, 3))["towers"])
        if levels != len(point_matcher.strides):
            raise ValueError(
                "point_matcher must have one stride for each pyramid level; got "
                f"{len(point_matcher.strides)} strides and {levels} levels"
            )

    @classmethod
    def from_parts(
        cls, backbone, necks, towers, num_classes, convention="modern", options=None, **settings
    ):
        options = options or cls.Options()
        if options.transform != "moment":
            reason = f"transform: {options.transform}"
            check_unused(options, ("moment_gradient_scale",), "detector.options.", reason)
        head = RepPointsHead(
            num_classes,
            filters=options.point_filters,
            num_points=options.num_points,
            transform=options.transform,
            moment_gradient_scale=options.moment_gradient_scale,
            gradient_scale=options.gradient_scale,
            prior=options.prior,
            name="head",
        )
        strides = options.strides or pyramid_strides(as_list(necks))
        return cls(
            backbone,
            necks,
            towers,
            head,
            point_matcher=NearestPointMatcher(strides, options.point_scale),
            matcher=MaxIoUMatcher(options.positive_iou, options.negative_iou, convention),
            focal_alpha=options.focal_alpha,
            focal_gamma=options.focal_gamma,
            classification_weight=options.classification_weight,
            smooth_l1_beta=options.smooth_l1_beta,
            box_init_weight=options.box_init_weight,
            box_refine_weight=options.box_refine_weight,
            **settings,
        )

    # ---------------------------------------------------------------- cells and boxes

    def locations(self, outputs: dict) -> list[tf.Tensor]:
        """Where the cells of raw outputs are: at their centres, in "mmdet1" at their corners.

        Args:
            outputs: what `call` returned.

        Returns:
            list of `[H_l * W_l, 2]` float32 x, y in pixels of the network's input.
        """
        strides = self.point_matcher.strides
        centres = grid_points(level_sizes(outputs), strides)
        if self.convention == "modern":
            return centres
        return [level - stride / 2 for level, stride in zip(centres, strides)]

    def cells(self, outputs: dict) -> tuple[tf.Tensor, tf.Tensor]:
        """The cells of all levels together: `[N, 2]` locations and `[N, 1]` strides, float32."""
        locations = self.locations(outputs)
        strides = [
            tf.fill([tf.shape(level)[0], 1], float(stride))
            for level, stride in zip(locations, self.point_matcher.strides)
        ]
        return tf.concat(locations, axis=0), tf.concat(strides, axis=0)

    def valid_cells(self, outputs: dict, batch: dict) -> tf.Tensor:
        """Which cells are learnt from: `[B, N]` bool, the levels concatenated."""
        strides = self.point_matcher.strides
        return cells_on_images(
            level_sizes(outputs), strides, batch["image_sizes"], self.size_divisor
        )

    def flatten_outputs(self, outputs):
        """As in `DenseDetector`, with the second sets of points in place of box codes."""
        return _flat(outputs["classification"]), _flat(outputs["points_refine"])

    # ---------------------------------------------------------------- learning

    def label_cells(self, outputs: dict, batch: dict) -> dict[str, tf.Tensor]:
        """What each cell should predict.

        Args:
            outputs, batch: as in `compute_losses`.

        Returns:
            dict, levels concatenated, N cells: `candidates` `[B, N, 4]` float32 xyxy, the boxes of
            the first sets of points in pixels, not clipped, without gradient; `init` and `refine`
            `[B, N]` int32, the matches of the two stages (index of a box, BACKGROUND or IGNORED of
            `sepc_tf.ops.matching`); `classes` `[B, N]` int32, those of `refine` (-1 where nothing
            is matched).
        """
        boxes = tf.cast(batch["boxes"], tf.float32)
        labels = tf.cast(batch["labels"], tf.int32)
        present = (labels >= 0) & has_area(boxes, self.convention)
        valid = self.valid_cells(outputs, batch)
        points = tf.concat(_flat(outputs["points_init"]), axis=1)
        candidates = tf.stop_gradient(_placed(self.head.boxes(points), *self.cells(outputs)))
        refine = self.matcher(candidates, boxes, present, valid)
        return {
            "candidates": candidates,
            "init": self.point_matcher(self.locations(outputs), boxes, present, valid),
            "refine": refine,
            "classes": tf.where(refine >= 0, gather_matched(labels, refine), -1),
        }

    def compute_losses(self, outputs, batch):
        targets = self.label_cells(outputs, batch)
        init_count, refine_count = all_reduce_sum(
            [_at_least_one_per_image(targets[stage] >= 0) for stage in ("init", "refine")]
        )
        logits = tf.concat(_flat(outputs["classification"]), axis=1)
        focal = sigmoid_focal_loss(
            tf.one_hot(targets["classes"], self.num_classes),
            logits,
            self.focal_alpha,
            self.focal_gamma,
        )
        counted = (targets["refine"] != IGNORED)[..., None]
        classification = tf.reduce_sum(tf.where(counted, focal, 0.0))
        box_init = self._box_loss(outputs, "points_init", batch, targets["init"])
        box_refine = self._box_loss(outputs, "points_refine", batch, targets["refine"])
        return {
            "classification": self.classification_weight * classification / refine_count,
            "box_init": self.box_init_weight * box_init / init_count,
            "box_refine": self.box_refine_weight * box_refine / refine_count,
        }

    def _box_loss(self, outputs, name, batch, matches):
        """Sum of smooth L1 over the matched cells."""
        predicted = self.head.boxes(tf.concat(_flat(outputs[name]), axis=1))
        locations, strides = self.cells(outputs)
        # Seen from the cell: in pixels of the image rounding shows in so small a beta.
        boxes = gather_matched(tf.cast(batch["boxes"], tf.float32), matches)
        wanted = (boxes - _twice(locations)) / strides
        scale = self.point_matcher.scale
        losses = smooth_l1_loss(wanted / scale, predicted / scale, self.smooth_l1_beta)
        return tf.reduce_sum(tf.where((matches >= 0)[..., None], losses, 0.0))

    # ---------------------------------------------------------------- inference

    def scored_boxes(self, outputs, image_sizes):
        """Of each level the `nms_pre` best cells by their highest class score.

        Boxes are clipped to [0, width] in both conventions.
        """
        level_boxes, level_scores = [], []
        for locations, stride, logits, points in zip(
            self.locations(outputs), self.point_matcher.strides, *self.flatten_outputs(outputs)
        ):
            scores = tf.sigmoid(logits)
            rows = top_candidates(scores, self.nms_pre)
            boxes = self.head.boxes(tf.gather(points, rows, axis=1, batch_dims=1))
            level_boxes.append(_placed(boxes, tf.gather(locations, rows), stride))
            level_scores.append(tf.gather(scores, rows, axis=1, batch_dims=1))
        boxes = clip_boxes(tf.concat(level_boxes, axis=1), image_sizes)
        return boxes, tf.concat(level_scores, axis=1)

    # ---------------------------------------------------------------- saving

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        config = super().get_config()
        del config["convention"]  # the matcher's
        return {
            **config,
            "point_matcher": serialize(self.point_matcher),
            "matcher": serialize(self.matcher),
            "focal_alpha": self.focal_alpha,
            "focal_gamma": self.focal_gamma,
            "classification_weight": self.classification_weight,
            "smooth_l1_beta": self.smooth_l1_beta,
            "box_init_weight": self.box_init_weight,
            "box_refine_weight": self.box_refine_weight,
            "size_divisor": self.size_divisor,
        }


def _at_least_one_per_image(matched):
    counts = tf.reduce_sum(tf.cast(matched, tf.float32), axis=1)
    return tf.reduce_sum(tf.maximum(counts, 1.0))


def _flat(maps):
    """Maps `[B, H_l, W_l, C]` as rows `[B, H_l * W_l, C]`."""
    return [tf.reshape(x, [tf.shape(x)[0], -1, x.shape[-1]]) for x in maps]


def _twice(locations):
    return tf.concat([locations, locations], axis=-1)


def _placed(boxes, locations, strides):
    """Boxes relative to their cell in units of the stride, as boxes in pixels of the image."""
    return boxes * strides + _twice(locations)
