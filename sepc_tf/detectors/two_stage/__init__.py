"""Detectors of two stages: boxes that may hold an object, then what each of them is."""

from sepc_tf.detectors.two_stage.cascade_rcnn import CascadeRCNN
from sepc_tf.detectors.two_stage.faster_rcnn import FasterRCNN
from sepc_tf.detectors.two_stage.htc import HTC
from sepc_tf.detectors.two_stage.mask_head import MaskBranch, MaskHead
from sepc_tf.detectors.two_stage.mask_rcnn import MaskRCNN
from sepc_tf.detectors.two_stage.roi_heads import BoxHead, RoIStage
from sepc_tf.detectors.two_stage.roi_part import RoIPart
from sepc_tf.detectors.two_stage.rpn import RPN
from sepc_tf.detectors.two_stage.semantic_head import SemanticBranch, SemanticHead

__all__ = [
    "HTC",
    "RPN",
    "BoxHead",
    "CascadeRCNN",
    "FasterRCNN",
    "MaskBranch",
    "MaskHead",
    "MaskRCNN",
    "RoIPart",
    "RoIStage",
    "SemanticBranch",
    "SemanticHead",
]
