"""The region proposal network: a dense detector of one class, "object", that proposes boxes."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.anchor_based import AnchorDetector, AnchorOptions
from sepc_tf.detectors.base import all_reduce_sum
from sepc_tf.detectors.dense import as_list, pyramid_strides
from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.boxes import LAST_PIXEL, clip_boxes, has_area
from sepc_tf.ops.coders import BoxCoder
from sepc_tf.ops.losses import smooth_l1_loss
from sepc_tf.ops.matching import MaxIoUMatcher
from sepc_tf.ops.nms import kept_rows, top_candidates
from sepc_tf.ops.sampling import RandomSampler, random_of_step
from sepc_tf.ops.saved import SavedByFields
from sepc_tf.settings import setting

keras.saving.register_keras_serializable(package="sepc_tf")(RandomSampler)

# Draws of random numbers in a step: this one for the anchors, those from 0 on for what follows.
RPN_DRAW = 31
DRAWS = 32


@keras.saving.register_keras_serializable(package="sepc_tf")
@dataclasses.dataclass
class ProposalOptions(SavedByFields):
    """How raw outputs become proposals."""

    nms_pre: int = setting(2000, at_least=1)  # candidates kept per level
    nms_iou: float = setting(0.7, above=0, at_most=1)  # from which a worse proposal is dropped
    nms_post: int = setting(2000, at_least=1)  # kept per level after NMS
    max_proposals: int = setting(2000, at_least=1)  # of an image
    min_size: float = setting(0.0, at_least=0)  # shortest side in pixels
    across_levels: bool = False  # a second NMS over all levels


@dataclasses.dataclass
class RPNOptions:
    """Settings of a region proposal network."""

    anchors: AnchorOptions = setting(AnchorOptions(scales=[8.0]))
    positive_iou: float = setting(0.7, at_least=0, at_most=1)  # from it on an object
    negative_iou: float = setting(0.3, at_least=0, at_most=1)  # below it background
    claim_iou: float = setting(0.3, at_least=0, at_most=1)  # a box claims no anchor below it
    sampled: int = setting(256, at_least=1)  # anchors of an image that are learnt from
    positive_fraction: float = setting(0.5, at_least=0, at_most=1)  # of them, at most
    smooth_l1_beta: float = setting(1 / 9, above=0)  # where smooth L1 turns linear
    box_stds: list[float] = setting([1.0, 1.0, 1.0, 1.0], above=0)  # of the box code


@keras.saving.register_keras_serializable(package="sepc_tf")
class RPNTower(keras.layers.Layer):
    """One 3x3 convolution with ReLU for both tasks and all levels.

    Sublayer: `shared_conv`.

    Args:
        filters: channels.

    Call arguments:
        pyramid: list of `[N, H_l, W_l, C]` maps.

    Returns:
        `(pyramid, pyramid)`, twice the same list of `[N, H_l, W_l, filters]` maps.

    Example:
        >>> cls, box = RPNTower(8)([tf.zeros([1, 8, 8, 8]), tf.zeros([1, 4, 4, 8])])

    Source: Faster R-CNN (arXiv 1506.01497), section 3.1.
    """

    def __init__(self, filters: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = _conv(filters, 3, "shared_conv", self.dtype_policy)

    def build(self, pyramid_shape):
        self.conv.build(tuple(pyramid_shape[0]))
        self.built = True

    def call(self, pyramid, training=None):
        features = [tf.nn.relu(self.conv(x)) for x in pyramid]
        return features, [*features]

    def compute_output_shape(self, pyramid_shape):
        shapes = [(*tuple(shape)[:-1], self.filters) for shape in pyramid_shape]
        return shapes, [*shapes]

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="sepc_tf")
class RPNHead(keras.layers.Layer):
    """The two 1x1 convolutions of a region proposal network.

    Sublayers: `objectness`, `deltas`. Kernels start as N(0, 0.01).

    Args:
        num_anchors: anchors A of one cell.

    Attributes:
        num_classes: 1.

    Call arguments:
        inputs: `(cls_pyramid, box_pyramid)`, two lists of `[B, H_l, W_l, C]` maps.

    Returns:
        dict of `classification`, list of `[B, H_l, W_l, A]` float32 logits, and `box`, list of
        `[B, H_l, W_l, A * 4]` float32.

    Example:
        >>> features = [tf.zeros([1, 8, 8, 16]), tf.zeros([1, 4, 4, 16])]
        >>> RPNHead(num_anchors=3)((features, features))["box"][0].shape
        TensorShape([1, 8, 8, 12])

    Source: Faster R-CNN (arXiv 1506.01497), section 3.1.
    """

    num_classes = 1

    def __init__(self, num_anchors: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_anchors = num_anchors
        self.objectness = _conv(num_anchors, 1, "objectness", self.dtype_policy)
        self.deltas = _conv(num_anchors * 4, 1, "deltas", self.dtype_policy)

    def build(self, input_shape):
        cls_shape, box_shape = input_shape
        self.objectness.build(tuple(cls_shape[0]))
        self.deltas.build(tuple(box_shape[0]))
        self.built = True

    def call(self, inputs):
        cls_pyramid, box_pyramid = inputs
        return {
            "classification": [tf.cast(self.objectness(x), tf.float32) for x in cls_pyramid],
            "box": [tf.cast(self.deltas(x), tf.float32) for x in box_pyramid],
        }

    def compute_output_shape(self, input_shape):
        cls_shapes, box_shapes = input_shape
        return {
            "classification": [(*tuple(shape)[:-1], self.num_anchors) for shape in cls_shapes],
            "box": [(*tuple(shape)[:-1], self.num_anchors * 4) for shape in box_shapes],
        }

    def get_config(self):
        return {**super().get_config(), "num_anchors": self.num_anchors}


def _conv(filters, side, name, dtype):
    return SymmetricConv2D(
        filters,
        side,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        dtype=dtype,
        name=name,
    )


@keras.saving.register_keras_serializable(package="sepc_tf")
class RPN(AnchorDetector):
    """Learns which anchors hold an object of any class, and proposes boxes.

    S of the anchors inside an image are learnt from (`sampler`). `rpn_classification = sum of
    binary cross entropies / N`, `rpn_box = sum of smooth L1 of the codes of the positives / N`, N =
    number of sampled anchors of the whole batch over all replicas; of each image at least 1
    positive and 1 negative count.

    Args:
        backbone, necks, towers, head, anchor_generator, coder: see `AnchorDetector`; the head has
            one class.
        matcher: `MaxIoUMatcher`.
        sampler: `RandomSampler`.
        smooth_l1_beta: where smooth L1 turns linear.
        sampling_seed: what is sampled is a function of it and the optimizer's step.
        **settings: of `AnchorDetector` and `DenseDetector`.

    Source: Faster R-CNN (arXiv 1506.01497), section 3.1.
    """

    loss_names = ("rpn_classification", "rpn_box")

    def __init__(
        self,
        backbone: keras.layers.Layer,
        necks: Any,
        towers: keras.layers.Layer,
        head: keras.layers.Layer,
        *,
        sampler: RandomSampler,
        smooth_l1_beta: float = 1 / 9,
        sampling_seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, necks, towers, head, **settings)
        self.sampler = sampler
        self.smooth_l1_beta = smooth_l1_beta
        self.sampling_seed = sampling_seed

    @classmethod
    def from_parts(
        cls, backbone, necks, filters, convention="modern", options=None, **settings
    ) -> RPN:
        """Builds an RPN with head, anchors, matching and box code of its own.

        Args:
            backbone, necks: as in the constructor.
            filters: channels of the shared convolution.
            convention: "modern" or "mmdet1".
            options: `RPNOptions`; by default the published ones.
            **settings: of the constructor.
        """
        options = options or RPNOptions()
        anchors = options.anchors.generator(pyramid_strides(as_list(necks)), convention)
        return cls(
            backbone,
            necks,
            RPNTower(filters, name="towers"),
            RPNHead(anchors.anchors_per_cell, name="head"),
            anchor_generator=anchors,
            coder=BoxCoder(stds=options.box_stds, convention=convention),
            matcher=MaxIoUMatcher(
                options.positive_iou, options.negative_iou, convention, options.claim_iou
            ),
            sampler=RandomSampler(options.sampled, options.positive_fraction),
            smooth_l1_beta=options.smooth_l1_beta,
            **settings,
        )

    # ---------------------------------------------------------------- learning

    def learnable_anchors(self, outputs, image_sizes):
        """Those that lie inside their image."""
        anchors = tf.concat(self.anchors(outputs), axis=0)
        sizes = tf.cast(image_sizes, anchors.dtype)[:, None]  # [B, 1, 2]
        ends = anchors[:, 2:] + LAST_PIXEL[self.convention]
        inside = tf.reduce_all(anchors[:, :2] >= 0, axis=-1)
        inside &= (ends[:, 0] <= sizes[..., 1]) & (ends[:, 1] <= sizes[..., 0])
        return inside & super().learnable_anchors(outputs, image_sizes)

    def label_anchors(self, outputs, batch):
        """As `AnchorDetector.label_anchors`; every object is of class 0."""
        return super().label_anchors(outputs, {**batch, "labels": tf.minimum(batch["labels"], 0)})

    def compute_losses(self, outputs, batch):
        targets = self.label_anchors(outputs, batch)
        rows, present = self.sample(self.sampler, targets["matches"], RPN_DRAW)
        return self.losses_of_sample(outputs, targets, rows, present)

    def losses_of_sample(
        self, outputs: dict, targets: dict, rows: tf.Tensor, present: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The losses of given anchors.

        Args:
            outputs: what `call` returned.
            targets: what `label_anchors` returned.
            rows, present: `[B, S]`, what the sampler returned.
        """
        logits, codes = (tf.concat(levels, axis=1) for levels in self.flatten_outputs(outputs))
        logits, codes, wanted, matches = (
            tf.gather(x, rows, axis=1, batch_dims=1)
            for x in (logits[..., 0], codes, targets["codes"], targets["matches"])
        )
        positive = present & (matches >= 0)
        entropies = tf.nn.sigmoid_cross_entropy_with_logits(
            labels=tf.cast(positive, tf.float32), logits=logits
        )
        counts = [
            tf.reduce_sum(tf.cast(flags, tf.float32), axis=1)
            for flags in (positive, present & (matches < 0))
        ]
        counts = tf.reduce_sum(tf.add_n([tf.maximum(count, 1.0) for count in counts]))
        normaliser = all_reduce_sum([counts])[0]
        box = tf.reduce_sum(smooth_l1_loss(wanted, codes, self.smooth_l1_beta), axis=2)
        return {
            "rpn_classification": tf.reduce_sum(tf.where(present, entropies, 0.0)) / normaliser,
            "rpn_box": tf.reduce_sum(tf.where(positive, box, 0.0)) / normaliser,
        }

    def sample(
        self, sampler: RandomSampler, matches: tf.Tensor, draw: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What a sampler takes of `[B, N]` matches in this step; other numbers for each draw."""
        optimizer = getattr(self, "optimizer", None)
        step = 0 if optimizer is None else tf.convert_to_tensor(optimizer.iterations)
        context = tf.distribute.get_replica_context()
        shape = tf.shape(matches)
        random = random_of_step(
            (shape[0], shape[1]),
            DRAWS * self.sampling_seed + draw,
            step,
            context.num_replicas_in_sync,
            context.replica_id_in_sync_group,
        )
        return sampler(matches, random)

    # ---------------------------------------------------------------- proposals

    def proposals(
        self, outputs: dict, image_sizes: tf.Tensor, options: ProposalOptions
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The boxes that most likely hold an object.

        Of each level the `nms_pre` best anchors, decoded and clipped; non-maximum suppression
        level by level; the `max_proposals` best of all levels.

        mmdet1 leaves a level of at most `nms_pre` anchors in their order, and `nms_post` takes the
        first ones of what it keeps, not the best; so does `max_proposals` after `across_levels`.

        Args:
            outputs: what `call` returned.
            image_sizes: `[B, 2]` height, width.
            options: see `ProposalOptions`.

        Returns:
            `[B, P, 4]` float32 xyxy boxes (0 past the end), `[B, P]` scores (-1 past the end), and
            `[B, P]` bool, which are real; P = `max_proposals`. No gradient flows through them.
        """
        logits, codes = self.flatten_outputs(outputs)
        levels = []
        for anchors, level_logits, level_codes in zip(self.anchors(outputs), logits, codes):
            scores = tf.sigmoid(level_logits)
            rows = top_candidates(scores, options.nms_pre)
            if self.convention == "mmdet1":
                few = tf.shape(scores)[1] <= options.nms_pre
                rows = tf.where(few, tf.sort(rows, axis=1), rows)
            level_codes = tf.gather(level_codes, rows, axis=1, batch_dims=1)
            boxes = self.coder.decode(tf.gather(anchors, rows), level_codes)
            boxes = clip_boxes(boxes, image_sizes, self.convention)
            scores = tf.gather(scores[..., 0], rows, axis=1, batch_dims=1)
            present = self._large_enough(boxes, options.min_size)
            levels.append(self._suppressed(boxes, scores, present, options, options.nms_post))
        boxes, scores, present = (tf.concat(parts, axis=1) for parts in zip(*levels))
        if options.across_levels:
            kept = self._suppressed(boxes, scores, present, options, options.max_proposals)
        else:
            count = tf.minimum(tf.shape(scores)[1], options.max_proposals)
            rows = tf.math.top_k(scores, k=count).indices
            kept = (tf.gather(x, rows, axis=1, batch_dims=1) for x in (boxes, scores, present))
        boxes, scores, present = (_padded(x, options.max_proposals) for x in kept)
        boxes = tf.where(present[..., None], boxes, 0.0)
        scores = tf.where(present, scores, -1.0)
        return tf.stop_gradient(boxes), tf.stop_gradient(scores), present

    def _large_enough(self, boxes, min_size):
        sides = boxes[..., 2:] - boxes[..., :2] + LAST_PIXEL[self.convention]
        large = tf.reduce_all(sides >= min_size, axis=-1)
        return large & has_area(boxes) if self.convention == "modern" else large

    def _suppressed(self, boxes, scores, present, options, most):
        """Boxes, scores (-1 past the end) and presence of what NMS keeps."""
        number = tf.shape(scores)[1]
        in_order = self.convention == "mmdet1"
        max_kept = number if in_order else tf.minimum(number, most)
        rows, counts = kept_rows(boxes, scores, present, options.nms_iou, max_kept, self.convention)
        found = tf.range(max_kept)[None] < counts[:, None]
        if in_order:
            rows = tf.sort(tf.where(found, rows, number), axis=1)[:, :most]
            found, rows = rows < number, tf.minimum(rows, number - 1)
        boxes, scores = (tf.gather(x, rows, axis=1, batch_dims=1) for x in (boxes, scores))
        return boxes, tf.where(found, scores, -1.0), found

    # ---------------------------------------------------------------- saving

    def get_config(self):
        return {
            **super().get_config(),
            "sampler": keras.saving.serialize_keras_object(self.sampler),
            "smooth_l1_beta": self.smooth_l1_beta,
            "sampling_seed": self.sampling_seed,
        }


def _padded(values, length):
    """`[B, N, ...]` -> `[B, length, ...]`, zeros or False past the end."""
    missing = [[0, 0], [0, length - tf.shape(values)[1]]]
    values = tf.pad(values, missing + [[0, 0]] * (values.shape.rank - 2))
    return tf.ensure_shape(values, [values.shape[0], length, *values.shape[2:]])
