"""Cascade R-CNN: several stages, each of which moves the boxes of the one before."""

from __future__ import annotations

import dataclasses

import keras

from sepc_tf.detectors.two_stage.faster_rcnn import FasterRCNN, TwoStageOptions, box_stage
from sepc_tf.detectors.two_stage.roi_heads import RoIStage
from sepc_tf.detectors.two_stage.roi_part import RoIPart
from sepc_tf.ops.coders import BoxCoder
from sepc_tf.ops.matching import MaxIoUMatcher
from sepc_tf.settings import setting


@dataclasses.dataclass
class CascadeRCNNOptions(TwoStageOptions):
    """`detector.options` of a Cascade R-CNN; a list has an entry for each stage."""

    class_agnostic: bool = True  # one box for all classes
    # from this IoU on a box is positive, below it background
    stage_ious: list[float] = setting([0.5, 0.6, 0.7], at_least=0, at_most=1)
    # of the box code of each stage
    stage_stds: list[list[float]] = setting(
        [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    )
    stage_weights: list[float] = setting([1.0, 0.5, 0.25], at_least=0)  # of the losses


@keras.saving.register_keras_serializable(package="sepc_tf")
class CascadeRCNN(FasterRCNN):
    """A region proposal network, and a cascade of box heads; see `FasterRCNN` and `RoIPart`.

    The parts of the loss are `classification_1`, `box_1`, `classification_2`, ...

    Example:
        >>> detector = CascadeRCNN.from_parts(
        ...     ResNet(18, width=8), FPN(16, min_level=2, extra_levels="pool"), filters=16,
        ...     num_classes=3, options=CascadeRCNNOptions(units=32))
        >>> detector.loss_names[-2:]
        ('classification_3', 'box_3')

    Source: arXiv 1712.00726.
    """

    Options = CascadeRCNNOptions

    @classmethod
    def roi_part(cls, options, necks, num_classes, convention):
        stages = cascade_stages(options, necks, num_classes, convention)
        return RoIPart(stages, options.stage_weights)


def cascade_stages(
    options: CascadeRCNNOptions,
    necks: list[keras.layers.Layer],
    num_classes: int,
    convention: str,
) -> list[RoIStage]:
    """The stages of `CascadeRCNNOptions` behind necks.

    Raises:
        ValueError: the lists of the options are not of one length of at least 2.
    """
    lists = ("stage_ious", "stage_stds", "stage_weights")
    lengths = [len(getattr(options, name)) for name in lists]
    if len({*lengths}) > 1 or lengths[0] < 2:
        raise ValueError(
            f"options.{', '.join(lists)}: expected one entry for each of at least two stages, got "
            f"{', '.join(map(str, lengths))} entries"
        )
    stages = []
    for i, (iou, stds) in enumerate(zip(options.stage_ious, options.stage_stds)):
        matcher = MaxIoUMatcher(iou, iou, convention, iou)
        coder = BoxCoder(stds, convention)
        stages.append(box_stage(options, necks, num_classes, matcher, coder, f"box_head_{i}"))
    return stages
