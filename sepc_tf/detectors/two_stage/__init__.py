"""Detectors of two stages: boxes that may hold an object, then what each of them is."""

from sepc_tf.detectors.two_stage.faster_rcnn import FasterRCNN
from sepc_tf.detectors.two_stage.roi_heads import BoxHead, RoIStage
from sepc_tf.detectors.two_stage.rpn import RPN

__all__ = ["RPN", "BoxHead", "FasterRCNN", "RoIStage"]
