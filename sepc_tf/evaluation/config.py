"""Settings of the evaluation."""

import dataclasses

from sepc_tf.settings import setting


@dataclasses.dataclass
class EvaluationConfig:
    """What is measured beside COCO's twelve numbers."""

    # further overlaps at which AP is reported, as mAP@0.33
    iou_thresholds: list[float] = setting([], above=0, at_most=1)
