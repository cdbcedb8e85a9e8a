"""Mask R-CNN: Faster R-CNN with a mask of every object."""

from __future__ import annotations

import dataclasses

import keras

from sepc_tf.detectors.two_stage.faster_rcnn import (
    FasterRCNN,
    FasterRCNNOptions,
    box_pooler,
    only_stage,
)
from sepc_tf.detectors.two_stage.mask_head import MaskBranch, MaskHead
from sepc_tf.detectors.two_stage.roi_part import RoIPart
from sepc_tf.settings import setting


@dataclasses.dataclass
class MaskOptions:
    """Settings of a mask branch."""

    pooled_size: int = setting(14, at_least=1)  # RoIAlign's bins; masks have twice as many
    filters: int = setting(256, at_least=1)  # channels of the convolutions
    num_convs: int = setting(4, at_least=1)  # in front of the transposed one


@dataclasses.dataclass
class MaskRCNNOptions(FasterRCNNOptions):
    """`detector.options` of a Mask R-CNN."""

    mask: MaskOptions = setting(MaskOptions())


@keras.saving.register_keras_serializable(package="sepc_tf")
class MaskRCNN(FasterRCNN):
    """Faster R-CNN whose positives also learn the mask of their object; see `FasterRCNN`.

    The loss has the part `mask`, see `MaskBranch.loss`; batches have the masks of
    `sepc_tf.ops.bitmaps`. Objects without a mask are learnt as boxes only.

    Example:
        >>> detector = MaskRCNN.from_parts(
        ...     ResNet(18, width=8), FPN(16, min_level=2, extra_levels="pool"), filters=16,
        ...     num_classes=3, options=MaskRCNNOptions(units=32, mask=MaskOptions(filters=8)))
        >>> detector.detect(tf.zeros([1, 64, 96, 3]), tf.constant([[64, 96]]))["masks"].shape
        TensorShape([1, 100, 28, 28])

    Source: arXiv 1703.06870.
    """

    Options = MaskRCNNOptions
    needs_masks = True

    @classmethod
    def roi_part(cls, options, necks, num_classes, convention):
        stage = only_stage(options, necks, num_classes, convention)
        masks = mask_branch(options.mask, necks, num_classes, convention, ["mask_head"])
        return RoIPart([stage], [1.0], masks)


def mask_branch(
    options: MaskOptions,
    necks: list[keras.layers.Layer],
    num_classes: int,
    convention: str,
    names: list[str],
) -> MaskBranch:
    """A branch behind necks with a head of each name; those behind the first have `flow`."""
    heads = [
        MaskHead(num_classes, options.filters, options.num_convs, flow=i > 0, name=name)
        for i, name in enumerate(names)
    ]
    return MaskBranch(box_pooler(necks, options.pooled_size, convention), heads, convention)
