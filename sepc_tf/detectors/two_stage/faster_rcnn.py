"""Faster R-CNN."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.anchor_based import check_same_convention
from sepc_tf.detectors.dense import as_list, pyramid_strides
from sepc_tf.detectors.two_stage.roi_heads import BoxHead, RoIStage
from sepc_tf.detectors.two_stage.roi_part import RoIPart
from sepc_tf.detectors.two_stage.rpn import RPN, ProposalOptions, RPNOptions
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.ops.boxes import rescale_boxes
from sepc_tf.ops.coders import BoxCoder
from sepc_tf.ops.matching import MaxIoUMatcher
from sepc_tf.ops.sampling import RandomSampler
from sepc_tf.settings import setting


@dataclasses.dataclass
class TwoStageOptions:
    """What all two-stage detectors have."""

    rpn: RPNOptions = setting(RPNOptions())
    train_proposals: ProposalOptions = setting(ProposalOptions())
    test_proposals: ProposalOptions = setting(
        ProposalOptions(nms_pre=1000, nms_post=1000, max_proposals=1000)
    )
    pooled_size: int = setting(7, at_least=1)  # RoIAlign's bins along each side
    units: int = setting(1024, at_least=1)  # of the two dense layers
    class_agnostic: bool = False  # one box for all classes
    sampled: int = setting(512, at_least=1)  # boxes of an image that are learnt from
    positive_fraction: float = setting(0.25, at_least=0, at_most=1)  # of them, at most
    smooth_l1_beta: float = setting(1.0, above=0)  # where smooth L1 turns linear


@dataclasses.dataclass
class FasterRCNNOptions(TwoStageOptions):
    """`detector.options` of a Faster R-CNN."""

    positive_iou: float = setting(0.5, at_least=0, at_most=1)  # from it on an object
    negative_iou: float = setting(0.5, at_least=0, at_most=1)  # below it background
    claim_iou: float = setting(0.5, at_least=0, at_most=1)  # an object claims no box below it
    box_stds: list[float] = setting([0.1, 0.1, 0.2, 0.2], above=0)  # of the box code


@keras.saving.register_keras_serializable(package="sepc_tf")
class FasterRCNN(RPN):
    """A region proposal network, and heads that classify and move its proposals.

    The losses are those of `RPN` and those of its `RoIPart`. What is sampled depends on
    `train.seed`, the optimizer's step and the place in the batch only, so a run that continues
    samples as one that was not stopped.

    With a mask branch the detections have `masks` `[B, D, S, S]` float32 besides: probabilities, at
    equal distances inside each box (0 past the end).

    Args:
        backbone, necks, towers, head, anchor_generator, coder, matcher, sampler: of the `RPN`.
        roi: `RoIPart`.
        train_proposals, test_proposals: `ProposalOptions` of learning and of detecting.
        **settings: of `RPN`, `AnchorDetector` and `DenseDetector`; `nms_pre` is not used.

    Returns (from a call):
        the raw outputs of the RPN.

    Example:
        >>> detector = FasterRCNN.from_parts(
        ...     ResNet(18, width=8), FPN(16, min_level=2, extra_levels="pool"), filters=16,
        ...     num_classes=3, options=FasterRCNNOptions(units=32))
        >>> detector.detect(tf.zeros([1, 64, 96, 3]), tf.constant([[64, 96]]))["boxes"].shape
        TensorShape([1, 100, 4])

    Source: arXiv 1506.01497; with a pyramid: arXiv 1612.03144, section 4.2.
    """

    Options = FasterRCNNOptions

    def __init__(
        self,
        backbone: keras.layers.Layer,
        necks: Any,
        towers: keras.layers.Layer,
        head: keras.layers.Layer,
        *,
        roi: RoIPart,
        train_proposals: ProposalOptions,
        test_proposals: ProposalOptions,
        **settings: Any,
    ) -> None:
        # No layers themselves, and needed to build the layers.
        self.roi = roi
        self.train_proposals = train_proposals
        self.test_proposals = test_proposals
        settings["further_layers"] = roi.layers
        super().__init__(backbone, necks, towers, head, **settings)
        coders = {f"stage {i}": stage.coder for i, stage in enumerate(roi.stages)}
        check_same_convention(coder=self.coder, **coders)
        self.num_classes = roi.stages[0].head.num_classes

    @property
    def loss_names(self) -> tuple[str, ...]:
        return (*super().loss_names, *self.roi.loss_names)

    @classmethod
    def from_parts(
        cls, backbone, necks, filters, num_classes, convention="modern", options=None, **settings
    ) -> FasterRCNN:
        """Builds the detector with heads, anchors, matching and box codes of its own.

        Args:
            backbone, necks: as in the constructor.
            filters: channels of the RPN's convolution.
            num_classes: number of object classes, without background.
            convention: "modern", or "mmdet1" for mmdetection's checkpoints.
            options: an instance of the detector's `Options`; by default the published ones.
            **settings: of the constructor.
        """
        options = options or cls.Options()
        return super().from_parts(
            backbone,
            necks,
            filters,
            convention,
            options.rpn,
            roi=cls.roi_part(options, as_list(necks), num_classes, convention),
            train_proposals=options.train_proposals,
            test_proposals=options.test_proposals,
            **settings,
        )

    @classmethod
    def roi_part(
        cls, options: Any, necks: list[keras.layers.Layer], num_classes: int, convention: str
    ) -> RoIPart:
        """What lies behind the proposals; arguments as in `from_parts`."""
        return RoIPart([only_stage(options, necks, num_classes, convention)], [1.0])

    # ---------------------------------------------------------------- parts, forward

    def part_inputs(self, images_shape):
        inputs = super().part_inputs(images_shape)
        pyramid = inputs["towers"]
        batch, channels = images_shape[0], tuple(pyramid[0])[-1]
        for stage in self.roi.stages:
            size, boxes = stage.pooler.size, self.test_proposals.max_proposals
            inputs[stage.head.name] = (batch, boxes, size, size, channels)
        if self.roi.masks:
            size = self.roi.masks.pooler.size
            shape = (batch, self.max_detections, size, size, channels)
            for head in self.roi.masks.heads:
                before = (*shape[:-1], head.filters)
                inputs[head.name] = (shape, before) if head.flow else shape
        if self.roi.semantic:
            inputs[self.roi.semantic.head.name] = pyramid
        return inputs

    def pyramid_and_outputs(
        self, images: tf.Tensor, training: bool
    ) -> tuple[list[tf.Tensor], dict]:
        """The maps behind the necks, and the raw outputs of the RPN."""
        pyramid = self.pyramid(images, training)
        return pyramid, self.head(self.towers(pyramid, training=training))

    # ---------------------------------------------------------------- learning

    def batch_losses(self, batch, training):
        pyramid, outputs = self.pyramid_and_outputs(batch["images"], training)
        boxes, _, present = self.proposals(outputs, batch["image_sizes"], self.train_proposals)
        semantic = self.roi.semantic_outputs(pyramid)
        rounds = self.roi.rounds(pyramid, semantic, boxes, present, batch, self.sample)
        losses = self.roi.losses(rounds, semantic, batch)
        return {**self.compute_losses(outputs, batch), **losses}

    # ---------------------------------------------------------------- inference

    def detect(self, images, image_sizes, original_sizes=None):
        pyramid, outputs = self.pyramid_and_outputs(images, training=False)
        boxes, _, present = self.proposals(outputs, image_sizes, self.test_proposals)
        return self.detect_in(pyramid, boxes, present, image_sizes, original_sizes)

    def detect_in(
        self,
        pyramid: list,
        boxes: tf.Tensor,
        present: tf.Tensor,
        image_sizes: tf.Tensor,
        original_sizes: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """`detect` from a pyramid and given proposals.

        Args:
            pyramid: the maps behind the necks.
            boxes, present: `[B, P, 4]` xyxy and `[B, P]` bool.
            image_sizes, original_sizes: as in `detect`.
        """
        semantic = self.roi.semantic_outputs(pyramid)
        steps = self.roi.steps(pyramid, semantic, boxes, present, image_sizes)
        scored = self.roi.scored_boxes(steps, present, image_sizes)
        found = self.suppressed(*scored, image_sizes, original_sizes)
        if not self.roi.masks:
            return found
        boxes, present = found["boxes"], found["classes"] >= 0
        if original_sizes is not None:  # back in pixels of the network's input
            boxes = rescale_boxes(boxes, original_sizes, image_sizes, self.convention)
        pooled = self.roi.mask_features(pyramid, semantic, boxes, present)
        columns = tf.maximum(found["classes"] + 1, 0)
        masks = self.roi.masks.probabilities(pooled, columns)
        return {**found, "masks": tf.where(present[..., None, None], masks, 0.0)}

    # ---------------------------------------------------------------- saving

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "roi": serialize(self.roi),
            "train_proposals": serialize(self.train_proposals),
            "test_proposals": serialize(self.test_proposals),
        }


def only_stage(
    options: FasterRCNNOptions,
    necks: list[keras.layers.Layer],
    num_classes: int,
    convention: str,
) -> RoIStage:
    """The stage of `FasterRCNNOptions` behind necks."""
    matcher = MaxIoUMatcher(
        options.positive_iou, options.negative_iou, convention, options.claim_iou
    )
    coder = BoxCoder(options.box_stds, convention)
    return box_stage(options, necks, num_classes, matcher, coder, "box_head")


def box_stage(
    options: TwoStageOptions,
    necks: list[keras.layers.Layer],
    num_classes: int,
    matcher: MaxIoUMatcher,
    coder: BoxCoder,
    name: str,
) -> RoIStage:
    """A stage behind necks, with a head of this name, in the convention of its coder."""
    return RoIStage(
        pooler=box_pooler(necks, options.pooled_size, coder.convention),
        head=BoxHead(num_classes, options.units, class_agnostic=options.class_agnostic, name=name),
        matcher=matcher,
        sampler=RandomSampler(options.sampled, options.positive_fraction),
        coder=coder,
        smooth_l1_beta=options.smooth_l1_beta,
    )


def box_pooler(necks: list[keras.layers.Layer], size: int, convention: str) -> RoIAlign:
    """RoIAlign on the levels up to stride 32; boxes of up to 112 pixels are read from P2."""
    strides = [stride for stride in pyramid_strides(necks) if stride <= 32]
    return RoIAlign(
        strides, size, finest_scale=14.0 * strides[0], convention=convention, name="pooler"
    )
