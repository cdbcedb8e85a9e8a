"""Detectors: what is learnt from a pyramid, and how its outputs become boxes."""

from sepc_tf.detectors.anchor_based import AnchorDetector
from sepc_tf.detectors.base import Detector
from sepc_tf.detectors.dense import DenseDetector
from sepc_tf.detectors.fcos import FCOS, FCOSHead
from sepc_tf.detectors.free_anchor import FreeAnchor
from sepc_tf.detectors.fsaf import FSAF
from sepc_tf.detectors.heads import PredictionHead
from sepc_tf.detectors.reppoints import RepPoints
from sepc_tf.detectors.retinanet import RetinaNet
from sepc_tf.detectors.two_stage import HTC, RPN, CascadeRCNN, FasterRCNN, MaskRCNN

__all__ = [
    "FCOS",
    "FSAF",
    "HTC",
    "RPN",
    "AnchorDetector",
    "CascadeRCNN",
    "DenseDetector",
    "Detector",
    "FCOSHead",
    "FasterRCNN",
    "FreeAnchor",
    "MaskRCNN",
    "PredictionHead",
    "RepPoints",
    "RetinaNet",
]
