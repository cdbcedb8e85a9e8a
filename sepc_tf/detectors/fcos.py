"""FCOS: every point inside an object predicts its distances to the object's sides."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import tensorflow as tf

from sepc_tf import compat
from sepc_tf.detectors.base import all_reduce_sum
from sepc_tf.detectors.dense import DenseDetector, as_list, level_sizes, pyramid_strides
from sepc_tf.detectors.heads import final_conv
from sepc_tf.ops.anchors import cells_on_images
from sepc_tf.ops.boxes import clip_boxes, has_area
from sepc_tf.ops.losses import iou_loss, sigmoid_focal_loss
from sepc_tf.ops.matching import IGNORED, gather_matched
from sepc_tf.ops.nms import top_candidates
from sepc_tf.ops.points import PointMatcher, box_distances, centerness, distance_boxes
from sepc_tf.settings import setting

BOX_LOSSES = ("iou", "giou")
# `ops` knows nothing of Keras; only saving needs this name.
keras.saving.register_keras_serializable(package="sepc_tf")(PointMatcher)


@dataclasses.dataclass
class FCOSOptions:
    """`detector.options` of an FCOS; the published ones, and the improvements made since."""

    strides: list[int] | None = setting(None, at_least=1)  # null: those of the pyramid
    # largest distance to a side that each level but the last learns; null: 8 strides
    max_distances: list[float] | None = setting(None, above=0)
    # in strides: objects want the points near their centre; null: all points inside
    center_radius: float | None = setting(None, above=0)
    normalize_distances: bool = False  # predict distances in strides, not in pixels
    centerness_on_box: bool = False  # predict it from the box tower, not the class tower
    prior: float = setting(0.01, above=0, below=1)  # every class score at the start
    focal_alpha: float = setting(0.25, at_least=0, at_most=1)
    focal_gamma: float = setting(2.0, at_least=0)
    classification_weight: float = setting(1.0, at_least=0)
    box_loss: str = setting("iou", choices=BOX_LOSSES)
    box_weight: float = setting(1.0, at_least=0)
    centerness_weight: float = setting(1.0, at_least=0)


@keras.saving.register_keras_serializable(package="sepc_tf")
class FCOSHead(keras.layers.Layer):
    """Class scores, distances to the sides of a box, and centerness, by 3x3 convolutions.

    `distances = unit exp(scale_l conv(x))`, with a number scale_l learnt for each level, 1 at the
    start. The unit is a pixel, or the stride of the level where `strides` are given. Kernels start
    as N(0, 0.01); the bias of the class scores at `-ln((1 - prior) / prior)`.

    Sublayers: `class_logits`, `distances`, `centerness`, `scale_0`, `scale_1`, ....

    Args:
        num_classes: number K of object classes, without background.
        strides: stride of each level, to predict distances in strides; None for pixels.
        centerness_on_box: whether centerness is predicted from the box pyramid.
        prior: initial class score.

    Call arguments:
        inputs: `(cls_pyramid, box_pyramid)`, two lists of `[B, H_l, W_l, C]` maps.

    Returns:
        dict of lists with one map for each level, at least float32: `classification`
        `[B, H_l, W_l, K]` logits, `box` `[B, H_l, W_l, 4]` distances in pixels (left, top, right,
        bottom), `centerness` `[B, H_l, W_l, 1]` logits.

    Raises:
        ValueError: fewer than one class, or not one stride for each level.

    Example:
        >>> features = [tf.zeros([1, 8, 8, 16]), tf.zeros([1, 4, 4, 16])]
        >>> outputs = FCOSHead(num_classes=3, strides=(8, 16))((features, features))
        >>> outputs["box"][1][0, 0, 0].numpy()
        array([16., 16., 16., 16.], dtype=float32)

    Source: FCOS (arXiv 1904.01355), section 3.1.
    """

    def __init__(self, num_classes, strides=None, centerness_on_box=False, prior=0.01, **kwargs):
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1; got {num_classes}")
        self.num_classes = num_classes
        self.strides = None if strides is None else tuple(strides)
        self.centerness_on_box = centerness_on_box
        self.prior = prior
        bias = -math.log((1 - prior) / prior)
        self.class_logits = final_conv("class_logits", num_classes, bias, self.dtype_policy)
        self.distances = final_conv("distances", 4, 0.0, self.dtype_policy)
        self.centerness = final_conv("centerness", 1, 0.0, self.dtype_policy)

    def build(self, input_shape):
        cls_shape, box_shape = ([tuple(shape) for shape in shapes] for shapes in input_shape)
        levels = len(box_shape)
        if self.strides is not None and len(self.strides) != levels:
            raise ValueError(f"strides must be one for each of {levels} levels; got {self.strides}")
        self.class_logits.build(cls_shape[0])
        self.distances.build(box_shape[0])
        self.centerness.build((box_shape if self.centerness_on_box else cls_shape)[0])
        self.scales = [
            Scale(dtype=self.dtype_policy, name=f"scale_{level}") for level in range(levels)
        ]
        for scale, shape in zip(self.scales, box_shape):
            scale.build((*shape[:-1], 4))
        self.built = True

    def call(self, inputs):
        cls_pyramid, box_pyramid = inputs
        units = self.strides or [1] * len(box_pyramid)
        return {
            "classification": [_precise(self.class_logits(x)) for x in cls_pyramid],
            "box": [
                tf.exp(scale(_precise(self.distances(x)))) * unit
                for x, scale, unit in zip(box_pyramid, self.scales, units)
            ],
            "centerness": [
                _precise(self.centerness(x))
                for x in (box_pyramid if self.centerness_on_box else cls_pyramid)
            ],
        }

    def compute_output_shape(self, input_shape):
        cls_shapes, box_shapes = input_shape
        channels = {
            "classification": (cls_shapes, self.num_classes),
            "box": (box_shapes, 4),
            "centerness": (box_shapes if self.centerness_on_box else cls_shapes, 1),
        }
        return {
            name: [(*tuple(shape)[:-1], count) for shape in shapes]
            for name, (shapes, count) in channels.items()
        }

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "strides": self.strides,
            "centerness_on_box": self.centerness_on_box,
            "prior": self.prior,
        }


@keras.saving.register_keras_serializable(package="sepc_tf")
class Scale(keras.layers.Layer):
    """The product with one number that is learnt: `y = scale x`; variable `scale`, 1 at the start.

    Example:
        >>> Scale()(tf.constant([2.0])).numpy()
        array([2.], dtype=float32)
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs, autocast=False)  # a map in float32 stays so

    def build(self, input_shape):
        self.scale = self.add_weight(
            name="scale",
            shape=(),
            initializer="ones",
            dtype="float64" if self.variable_dtype == "float64" else "float32",
            **compat.float32_weight_options(),
        )
        self.built = True

    def call(self, x):
        return x * tf.convert_to_tensor(self.scale)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)


@keras.saving.register_keras_serializable(package="sepc_tf")
class FCOS(DenseDetector):
    """Points inside objects predict class, distances to the four sides, and centerness.

    `PointMatcher` gives a point to at most one object. With P the number of matched points and T
    their centerness (`sepc_tf.ops.points.centerness`):

    - `classification = w_c * sum of focal losses / max(P, 1)`;
    - `box = w_b * sum of T * (-ln IoU or 1 - GIoU) / sum of T`, over the matched points;
    - `centerness = w_t * sum of binary cross entropies with T / P`, over the matched points.

    Sums and P are of the whole batch over all replicas; the last two are 0 where nothing is
    matched. A detection's score is class score * centerness.

    In the "mmdet1" convention the first divisor is P + the number of images, points beyond an
    image's own padding are background (in "modern" they are not learnt from), and a detection needs
    a class score, not a final score, above `score_threshold`.

    Args:
        backbone, necks, towers: see `DenseDetector`.
        head: `FCOSHead`.
        matcher: `PointMatcher`, one stride for each level; its convention is the detector's.
        focal_alpha: weight of positives in the focal loss.
        focal_gamma: its exponent.
        classification_weight: w_c.
        box_loss: "iou" or "giou".
        box_weight: w_b.
        centerness_weight: w_t.
        size_divisor: what padded image sides are multiples of.
        **settings: further arguments of `DenseDetector`.

    Raises:
        ValueError: parts that do not fit together, or an unknown box loss.

    Returns (from a call):
        What `FCOSHead` returns.

    Example:
        >>> detector = FCOS.from_parts(
        ...     ResNet(18, width=8), FPN(16), SEPC.variant("sepc_lite", filters=16), num_classes=3)
        >>> detector(tf.zeros([1, 64, 96, 3]))["centerness"][0].shape
        TensorShape([1, 8, 12, 1])

    Source: arXiv 1904.01355; centre sampling, normalised distances, GIoU and centerness on the box
    tower: arXiv 2006.09214, section 3.
    """

    Options = FCOSOptions
    loss_names = ("classification", "box", "centerness")

    def __init__(
        self,
        backbone: keras.layers.Layer,
        necks: Any,
        towers: keras.layers.Layer,
        head: FCOSHead,
        *,
        matcher: PointMatcher,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        classification_weight: float = 1.0,
        box_loss: str = "iou",
        box_weight: float = 1.0,
        centerness_weight: float = 1.0,
        size_divisor: int = 32,
        **settings: Any,
    ) -> None:
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss must be one of {BOX_LOSSES}, got {box_loss!r}")
        if head.strides not in (None, matcher.strides):
            raise ValueError(
                f"head and matcher must have the same strides; got {head.strides} and "
                f"{matcher.strides}"
            )
        settings["convention"] = matcher.convention
        super().__init__(backbone, necks, towers, head, **settings)
        levels = len(self.part_inputs((None, None, None, 3))["towers"])
        if levels != len(matcher.strides):
            raise ValueError(
                f"matcher must have one stride for each pyramid level; got {len(matcher.strides)} "
                f"strides and {levels} levels"
            )
        self.matcher = matcher
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.classification_weight = classification_weight
        self.box_loss = box_loss
        self.box_weight = box_weight
        self.centerness_weight = centerness_weight
        self.size_divisor = size_divisor

    @classmethod
    def from_parts(
        cls, backbone, necks, towers, num_classes, convention="modern", options=None, **settings
    ):
        options = options or cls.Options()
        strides = options.strides or pyramid_strides(as_list(necks))
        head = FCOSHead(
            num_classes,
            strides=strides if options.normalize_distances else None,
            centerness_on_box=options.centerness_on_box,
            prior=options.prior,
            name="head",
        )
        return cls(
            backbone,
            necks,
            towers,
            head,
            matcher=PointMatcher(strides, options.max_distances, options.center_radius, convention),
            focal_alpha=options.focal_alpha,
            focal_gamma=options.focal_gamma,
            classification_weight=options.classification_weight,
            box_loss=options.box_loss,
            box_weight=options.box_weight,
            centerness_weight=options.centerness_weight,
            **settings,
        )

    # ---------------------------------------------------------------- learning

    def compute_losses(self, outputs, batch):
        targets = self.label_points(outputs, batch)
        logits, distances = (tf.concat(levels, axis=1) for levels in self.flatten_outputs(outputs))
        centerness_logits = tf.concat(self.flatten_centerness(outputs), axis=1)
        matched = targets["matches"] >= 0
        counted = targets["matches"] != IGNORED
        focal = sigmoid_focal_loss(
            tf.one_hot(targets["classes"], self.num_classes),
            logits,
            self.focal_alpha,
            self.focal_gamma,
        )
        boxes = distance_boxes(tf.concat(self.points(outputs), axis=0), distances)
        box = iou_loss(targets["boxes"], boxes, self.box_loss, self.convention)
        cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(
            labels=targets["centerness"], logits=centerness_logits
        )
        sums = [tf.cast(matched, tf.float32), targets["centerness"]]
        images = tf.cast(tf.shape(logits)[0], tf.float32)
        totals = tf.stack([*map(tf.reduce_sum, sums), images])
        positives, weight, images = tf.unstack(all_reduce_sum([totals])[0])
        normaliser = tf.maximum(positives, 1.0)
        of_classes = positives + images if self.convention == "mmdet1" else normaliser
        return {
            "classification": self.classification_weight
            * tf.reduce_sum(tf.where(counted[..., None], focal, 0.0))
            / of_classes,
            "box": self.box_weight
            * tf.math.divide_no_nan(
                tf.reduce_sum(tf.where(matched, targets["centerness"] * box, 0.0)), weight
            ),
            "centerness": self.centerness_weight
            * tf.reduce_sum(tf.where(matched, cross_entropy, 0.0))
            / normaliser,
        }

    def label_points(self, outputs: dict, batch: dict) -> dict[str, tf.Tensor]:
        """What each point should predict.

        Args:
            outputs, batch: as in `compute_losses`.

        Returns:
            dict, levels concatenated, N points: `matches` `[B, N]` int32 (index of a box,
            BACKGROUND or IGNORED of `sepc_tf.ops.matching`), `classes` `[B, N]` int32 (-1 where
            nothing is matched), `boxes` `[B, N, 4]` float32 xyxy, the matched box (any where
            nothing is matched), `centerness` `[B, N]` float32 (0 where nothing is matched).
        """
        boxes = tf.cast(batch["boxes"], tf.float32)
        labels = tf.cast(batch["labels"], tf.int32)
        sizes = level_sizes(outputs)
        valid = cells_on_images(
            sizes, self.matcher.strides, batch["image_sizes"], self.size_divisor
        )
        if self.convention == "mmdet1":
            valid = tf.ones_like(valid)
        present = (labels >= 0) & has_area(boxes, self.convention)
        matches = self.matcher(sizes, boxes, present, valid)
        matched = matches >= 0
        targets = gather_matched(boxes, matches)
        distances = box_distances(tf.concat(self.points(outputs), axis=0), targets)
        return {
            "matches": matches,
            "classes": tf.where(matched, gather_matched(labels, matches), -1),
            "boxes": targets,
            "centerness": tf.where(matched, centerness(distances), 0.0),
        }

    def points(self, outputs: dict) -> list[tf.Tensor]:
        """Points of each level of raw outputs: list of `[H_l * W_l, 2]` float32 x, y."""
        return self.matcher.points(level_sizes(outputs))

    def flatten_centerness(self, outputs: dict) -> list[tf.Tensor]:
        """Raw centerness as rows: list of `[B, H_l * W_l]` float32 logits."""
        return [
            tf.reshape(tf.cast(x, tf.float32), [tf.shape(x)[0], -1]) for x in outputs["centerness"]
        ]

    # ---------------------------------------------------------------- inference

    @property
    def lowest_score(self):
        return 0.0 if self.convention == "mmdet1" else self.score_threshold

    def scored_boxes(self, outputs, image_sizes):
        """The boxes of `candidates`, and their class scores times centerness."""
        boxes, scores, centre_scores = self.candidates(outputs, image_sizes)
        final = scores * centre_scores[..., None]
        if self.convention == "mmdet1":
            final = tf.where(scores > self.score_threshold, final, 0.0)
        return boxes, final

    def candidates(self, outputs, image_sizes):
        """Of each level the `nms_pre` points with the highest class score times centerness.

        Args:
            outputs, image_sizes: as in `decode`.

        Returns:
            `[B, N, 4]` float32 xyxy boxes, clipped to the image; `[B, N, K]` class scores and
            `[B, N]` centerness, both from 0 to 1.
        """
        logits, distances = self.flatten_outputs(outputs)
        levels = zip(self.points(outputs), logits, distances, self.flatten_centerness(outputs))
        boxes, scores, centre_scores = [], [], []
        for points, level_logits, level_distances, centre_logits in levels:
            level_scores, level_centre = tf.sigmoid(level_logits), tf.sigmoid(centre_logits)
            rows = top_candidates(level_scores * level_centre[..., None], self.nms_pre)
            of_rows = tf.gather(level_distances, rows, axis=1, batch_dims=1)
            boxes.append(distance_boxes(tf.gather(points, rows), of_rows))
            scores.append(tf.gather(level_scores, rows, axis=1, batch_dims=1))
            centre_scores.append(tf.gather(level_centre, rows, axis=1, batch_dims=1))
        return (
            clip_boxes(tf.concat(boxes, axis=1), image_sizes, self.convention),
            tf.concat(scores, axis=1),
            tf.concat(centre_scores, axis=1),
        )

    # ---------------------------------------------------------------- saving

    def get_config(self):
        config = super().get_config()
        del config["convention"]  # the matcher's
        return {
            **config,
            "matcher": keras.saving.serialize_keras_object(self.matcher),
            "focal_alpha": self.focal_alpha,
            "focal_gamma": self.focal_gamma,
            "classification_weight": self.classification_weight,
            "box_loss": self.box_loss,
            "box_weight": self.box_weight,
            "centerness_weight": self.centerness_weight,
            "size_divisor": self.size_divisor,
        }


def _precise(x):
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
