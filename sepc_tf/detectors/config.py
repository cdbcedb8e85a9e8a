"""Settings of a whole detector."""

import dataclasses
from typing import Any

from sepc_tf.backbones.config import BackboneConfig
from sepc_tf.necks.config import HeadConfig
from sepc_tf.settings import setting


@dataclasses.dataclass
class DetectorConfig:
    """A detector: its parts by type, and how its outputs become detections."""

    type: str = "retinanet"  # a name of `sepc_tf.zoo.DETECTORS`
    # mmdet1: the authors' box arithmetic, for their checkpoints
    convention: str = setting("modern", choices=("modern", "mmdet1"))
    backbone: BackboneConfig = setting(BackboneConfig())
    # one after the other, each {type: a name of `sepc_tf.zoo.NECKS`, and its settings}
    necks: list[Any] = setting([{"type": "fpn"}])
    head: HeadConfig = setting(HeadConfig())
    options: Any = setting({})  # of the detector's type: anchors, matching, losses
    score_threshold: float = setting(0.05, at_least=0, below=1)  # below it nothing is a detection
    # hard: per class | soft: scores decay instead | class_agnostic: one box per object
    nms: str = setting("hard", choices=("hard", "soft", "class_agnostic"))
    nms_iou: float = setting(0.5, above=0, at_most=1)  # from which a worse box is dropped
    soft_nms_sigma: float = setting(0.5, above=0)  # of soft: scores times exp(-IoU^2 / sigma)
    nms_pre: int = setting(1000, at_least=1)  # candidates kept per pyramid level
    max_detections: int = setting(100, at_least=1)  # of an image
