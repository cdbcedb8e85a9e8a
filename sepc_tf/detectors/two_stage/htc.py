"""Hybrid task cascade: boxes and masks of several stages, and a semantic branch."""

from __future__ import annotations

import dataclasses

import keras

from sepc_tf.detectors.dense import pyramid_channels, pyramid_strides
from sepc_tf.detectors.two_stage.cascade_rcnn import (
    CascadeRCNN,
    CascadeRCNNOptions,
    cascade_stages,
)
from sepc_tf.detectors.two_stage.mask_rcnn import MaskOptions, mask_branch
from sepc_tf.detectors.two_stage.roi_part import RoIPart
from sepc_tf.detectors.two_stage.semantic_head import SemanticBranch, SemanticHead
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.settings import check_unused, setting

FUSION_LEVEL = 1  # of the pyramid: the semantic branch has the size of P3


@dataclasses.dataclass
class SemanticOptions:
    """Settings of the semantic branch."""

    enabled: bool = True  # false: without semantic branch
    classes: int | None = setting(None, at_least=1)  # null: background and those of the objects
    num_convs: int = setting(4, at_least=0)  # behind the sum of the levels
    loss_weight: float = setting(0.2, at_least=0)  # of the semantic loss


@dataclasses.dataclass
class HTCOptions(CascadeRCNNOptions):
    """`detector.options` of an HTC."""

    mask: MaskOptions = setting(MaskOptions())
    semantic: SemanticOptions = setting(SemanticOptions())


@keras.saving.register_keras_serializable(package="sepc_tf")
class HTC(CascadeRCNN):
    """A cascade whose stages make boxes and masks in turn, with features of a semantic branch.

    See `RoIPart` for what is interleaved, `MaskHead` for the flow between the mask heads, and
    `SemanticBranch`. The parts of the loss are `classification_1`, `box_1`, `mask_1`,
    `classification_2`, ..., and `semantic`. Batches have the masks of `sepc_tf.ops.bitmaps`, and
    may have `semantic`, labels at the size of the pyramid's second level.

    Example:
        >>> detector = HTC.from_parts(
        ...     ResNet(18, width=8), FPN(16, min_level=2, extra_levels="pool"), filters=16,
        ...     num_classes=3, options=HTCOptions(units=32, mask=MaskOptions(filters=8)))
        >>> detector.loss_names[-2:]
        ('mask_3', 'semantic')

    Source: arXiv 1901.07518.
    """

    Options = HTCOptions
    needs_masks = True

    @classmethod
    def roi_part(cls, options, necks, num_classes, convention):
        stages = cascade_stages(options, necks, num_classes, convention)
        names = [f"mask_head_{i}" for i in range(len(stages))]
        masks = mask_branch(options.mask, necks, num_classes, convention, names)
        semantic = semantic_branch(options, necks, num_classes, convention)
        return RoIPart(stages, options.stage_weights, masks, semantic)


def semantic_branch(
    options: HTCOptions, necks: list[keras.layers.Layer], num_classes: int, convention: str
) -> SemanticBranch | None:
    """The branch of `HTCOptions` behind necks; None where it is not enabled.

    Raises:
        ConfigError: settings of a branch that is not enabled.
        ValueError: sizes that do not fit together.
    """
    semantic, size = options.semantic, options.mask.pooled_size
    if not semantic.enabled:
        unused = ("classes", "num_convs", "loss_weight")
        check_unused(semantic, unused, "detector.options.semantic.", "enabled: false")
        return None
    if size % options.pooled_size:
        raise ValueError(
            f"options.mask.pooled_size ({size}) must be a multiple of options.pooled_size "
            f"({options.pooled_size}) for the semantic branch, whose features are added to both"
        )
    strides = pyramid_strides(necks)
    head = SemanticHead(
        semantic.classes or num_classes + 1,
        len(strides),
        pyramid_channels(necks),
        semantic.num_convs,
        FUSION_LEVEL,
        name="semantic_head",
    )
    pooler = RoIAlign(
        strides[FUSION_LEVEL : FUSION_LEVEL + 1], size, convention=convention, name="pooler"
    )
    return SemanticBranch(pooler, head, semantic.loss_weight)
