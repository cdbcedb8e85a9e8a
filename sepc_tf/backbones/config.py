"""Settings of a backbone."""

import dataclasses
from typing import Any

from sepc_tf.settings import setting


@dataclasses.dataclass
class BackboneConfig:
    """ResNet or ResNeXt, or with `type: keras_cv>NAME` a KerasCV backbone made of `options`."""

    type: str = "resnet"  # or keras_cv>NAME, as keras_cv>ResNetV2Backbone
    depth: int = setting(50, choices=(18, 34, 50, 101))  # layers of a ResNet
    width: int = setting(64, at_least=1)  # channels of the stem; 64 is the standard network
    groups: int = setting(1, at_least=1)  # ResNeXt: 64 with base_width 4 for X101-64x4d
    base_width: int = setting(64, at_least=1)  # channels of a group in the first stage
    deformable_stages: list[int] = setting([], at_least=2, at_most=5)  # e.g. [3, 4, 5] for c3-c5
    # of bottlenecks: where stride 2 is, pytorch: in the 3x3 convolution, caffe: in the first 1x1
    style: str = setting("pytorch", choices=("pytorch", "caffe"))
    # -1: nothing, 0: the stem, 1: stem and first stage, ...
    frozen_stages: int = setting(1, at_least=-1, at_most=4)
    # frozen | eval (running statistics, trained gamma and beta) | sync (batch statistics)
    norm: str = setting("eval", choices=("frozen", "eval", "sync"))
    weights: str | None = None  # a local file; see docs/checkpoints.md
    options: dict[str, Any] = setting({})  # arguments of a KerasCV backbone
