"""Settings of a training."""

import dataclasses
from typing import Any

from sepc_tf.settings import setting


@dataclasses.dataclass
class OptimizerConfig:
    """The optimizer, and what the train step does with the gradients before it."""

    name: str = "SGD"  # a Keras optimizer, or "tfa>SGDW" on the addons stack
    # for `reference_batch_size` images; scaled with the batch size
    learning_rate: float = setting(0.01, at_least=0)
    reference_batch_size: int = setting(16, at_least=1)  # that the learning rate is meant for
    momentum: float = setting(0.9, at_least=0, below=1)  # of optimizers that have one
    weight_decay: float = setting(1e-4, at_least=0)  # L2 of every trained weight
    decoupled_weight_decay: bool = False  # false: L2, added to the gradient as PyTorch's SGD does
    # factors of learning rate and weight decay for the biases of convolutions and dense layers (not
    # the beta of norms); SGD with L2 only
    bias_lr_mult: float = setting(1.0, at_least=0)
    bias_decay_mult: float = setting(1.0, at_least=0)  # see bias_lr_mult
    clip_norm: float | None = setting(35.0, above=0)  # of all gradients together; null: none
    options: dict[str, Any] = setting({})  # further constructor arguments


@dataclasses.dataclass
class ScheduleConfig:
    """The learning rate over the steps."""

    # steps: times `decay` at each milestone | cosine: to 0 at the end | constant
    type: str = setting("steps", choices=("steps", "cosine", "constant"))
    milestones: list[int] = setting([8, 11], at_least=0)  # epochs
    decay: float = setting(0.1, above=0, at_most=1)  # of `steps`
    # linear: from warmup_ratio to 1; constant: warmup_ratio all the while
    warmup: str = setting("linear", choices=("linear", "constant"))
    warmup_steps: int = setting(500, at_least=0)  # how long `warmup` lasts
    warmup_ratio: float = setting(1 / 3, at_least=0, at_most=1)  # of the rate, at the first step


@dataclasses.dataclass
class TrainConfig:
    """One training."""

    epochs: int = setting(12, at_least=1)  # passes over the training images
    batch_size: int = setting(16, at_least=1)  # images of one step over all replicas
    seed: int = setting(0, at_least=0, below=2**32)  # of weights, order and augmentation
    optimizer: OptimizerConfig = setting(OptimizerConfig())
    schedule: ScheduleConfig = setting(ScheduleConfig())
    # multi_worker: from TF_CONFIG
    strategy: str = setting("mirrored", choices=("mirrored", "multi_worker", "one"))
    cpu_replicas: int = setting(1, at_least=1)  # replicas of `mirrored` without a GPU
    # mixed_float16 scales the loss; bfloat16 needs a processor that has it to be fast
    mixed_precision: str | None = setting(None, choices=(None, "mixed_float16", "mixed_bfloat16"))
    jit_compile: bool = False  # the training step by XLA; slower on CPUs
    deterministic: bool = False  # bit-equal reruns, at some cost in speed
    ema_decay: float | None = setting(None, above=0, below=1)  # evaluate an average of weights
    evaluate_every: int = setting(1, at_least=1)  # epochs; the last epoch is always evaluated
    checkpoint_every: int = setting(1000, at_least=1)  # steps; the end of an epoch always
    keep_checkpoints: int = setting(2, at_least=1)  # the newest; best.npz stays beside them
    log_every: int = setting(20, at_least=1)  # steps
