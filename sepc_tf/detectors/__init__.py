"""Detectors: what is learnt from a pyramid, and how its outputs become boxes."""

from sepc_tf.detectors.base import Detector, KerasCVFeatures
from sepc_tf.detectors.free_anchor import FreeAnchor
from sepc_tf.detectors.fsaf import FSAF
from sepc_tf.detectors.heads import PredictionHead
from sepc_tf.detectors.retinanet import RetinaNet

__all__ = ["FSAF", "Detector", "FreeAnchor", "KerasCVFeatures", "PredictionHead", "RetinaNet"]
