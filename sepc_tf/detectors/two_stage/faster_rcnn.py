"""Faster R-CNN."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.anchor_based import check_same_convention
from sepc_tf.detectors.dense import as_list, pyramid_strides
from sepc_tf.detectors.two_stage.roi_heads import BoxHead, RoIStage
from sepc_tf.detectors.two_stage.rpn import RPN, ProposalOptions, RPNOptions
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.ops.coders import BoxCoder
from sepc_tf.ops.matching import MaxIoUMatcher
from sepc_tf.ops.sampling import RandomSampler
from sepc_tf.settings import setting


@dataclasses.dataclass
class FasterRCNNOptions:
    """`detector.options` of a Faster R-CNN."""

    rpn: RPNOptions = setting(RPNOptions())
    train_proposals: ProposalOptions = setting(ProposalOptions())
    test_proposals: ProposalOptions = setting(
        ProposalOptions(nms_pre=1000, nms_post=1000, max_proposals=1000)
    )
    pooled_size: int = setting(7, at_least=1)  # RoIAlign's bins along each side
    units: int = setting(1024, at_least=1)  # of the two dense layers
    class_agnostic: bool = False  # one box for all classes
    positive_iou: float = setting(0.5, at_least=0, at_most=1)  # from it on an object
    negative_iou: float = setting(0.5, at_least=0, at_most=1)  # below it background
    claim_iou: float = setting(0.5, at_least=0, at_most=1)  # an object claims no box below it
    sampled: int = setting(512, at_least=1)  # boxes of an image that are learnt from
    positive_fraction: float = setting(0.25, at_least=0, at_most=1)  # of them, at most
    box_stds: list[float] = setting([0.1, 0.1, 0.2, 0.2], above=0)  # of the box code
    smooth_l1_beta: float = setting(1.0, above=0)  # where smooth L1 turns linear


@keras.saving.register_keras_serializable(package="sepc_tf")
class FasterRCNN(RPN):
    """A region proposal network, and a box head that classifies and moves its proposals.

    The losses are those of `RPN` and those of its stage, see `RoIStage.losses`. What is sampled
    depends on `sampling_seed`, the optimizer's step and the place in the batch only, so a run that
    continues samples as one that was not stopped.

    Args:
        backbone, necks, towers, head, anchor_generator, coder, matcher, sampler: of the `RPN`.
        stage: `RoIStage`.
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
    loss_names = (*RPN.loss_names, "classification", "box")

    def __init__(
        self,
        backbone: keras.layers.Layer,
        necks: Any,
        towers: keras.layers.Layer,
        head: keras.layers.Layer,
        *,
        stage: RoIStage,
        train_proposals: ProposalOptions,
        test_proposals: ProposalOptions,
        **settings: Any,
    ) -> None:
        # No layers themselves, and needed to build the layers.
        self.stage = stage
        self.train_proposals = train_proposals
        self.test_proposals = test_proposals
        settings["further_layers"] = [stage.head]
        super().__init__(backbone, necks, towers, head, **settings)
        check_same_convention(coder=self.coder, stage=stage.coder)
        self.num_classes = stage.head.num_classes

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
            options: `FasterRCNNOptions`; by default the published ones.
            **settings: of the constructor.
        """
        options = options or cls.Options()
        strides = [stride for stride in pyramid_strides(as_list(necks)) if stride <= 32]
        stage = RoIStage(
            pooler=RoIAlign(
                strides,
                options.pooled_size,
                finest_scale=14.0 * strides[0],  # 56 on P2
                convention=convention,
                name="pooler",
            ),
            head=BoxHead(
                num_classes,
                options.units,
                class_agnostic=options.class_agnostic,
                name="box_head",
            ),
            matcher=MaxIoUMatcher(
                options.positive_iou, options.negative_iou, convention, options.claim_iou
            ),
            sampler=RandomSampler(options.sampled, options.positive_fraction),
            coder=BoxCoder(options.box_stds, convention),
            smooth_l1_beta=options.smooth_l1_beta,
        )
        return super().from_parts(
            backbone,
            necks,
            filters,
            convention,
            options.rpn,
            stage=stage,
            train_proposals=options.train_proposals,
            test_proposals=options.test_proposals,
            **settings,
        )

    # ---------------------------------------------------------------- parts, forward

    def part_inputs(self, images_shape):
        inputs = super().part_inputs(images_shape)
        size, boxes = self.stage.pooler.size, self.test_proposals.max_proposals
        channels = tuple(inputs["towers"][0])[-1]
        inputs[self.stage.head.name] = (images_shape[0], boxes, size, size, channels)
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
        boxes, matches = self.stage.candidates(boxes, present, batch)
        rows, present = self.stage.sampler(matches, self.random(matches, 1))
        samples = self.stage.samples(boxes, matches, rows, present, batch)
        return {**self.compute_losses(outputs, batch), **self.stage_losses(pyramid, samples)}

    def stage_losses(self, pyramid: list, samples: dict) -> dict[str, tf.Tensor]:
        """The losses of the box head for given samples (see `RoIStage`)."""
        outputs = self.stage(pyramid, samples["boxes"], samples["present"])
        return self.stage.losses(outputs, samples)

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
        outputs = self.stage(pyramid, boxes, present)
        boxes, scores = self.stage.scored_boxes(outputs, boxes, present, image_sizes)
        return self.suppressed(boxes, scores, image_sizes, original_sizes)

    # ---------------------------------------------------------------- saving

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "stage": serialize(self.stage),
            "train_proposals": serialize(self.train_proposals),
            "test_proposals": serialize(self.test_proposals),
        }
