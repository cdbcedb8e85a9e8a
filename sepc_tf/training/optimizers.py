"""Optimizers by name, from Keras or (on the addons stack) from tensorflow-addons."""

from __future__ import annotations

import inspect

import keras

from sepc_tf.errors import ConfigError
from sepc_tf.settings import check_unused
from sepc_tf.training.config import OptimizerConfig


def make_optimizer(
    config: OptimizerConfig,
    schedule: keras.optimizers.schedules.LearningRateSchedule | float,
) -> keras.optimizers.Optimizer:
    """Builds the configured optimizer.

    Clipping, L2 weight decay and the factors of biases belong to the detector's train step, which
    needs the gradients summed over all replicas; here only decoupled weight decay is handed on.

    Args:
        config: a `sepc_tf.config.OptimizerConfig`. `name` is a Keras optimizer ("SGD", "AdamW") or
            "tfa>NAME"; a tensorflow-addons wrapper such as "tfa>Lookahead" wraps
            `options.optimizer` ("SGD" unless given).
        schedule: a learning-rate schedule or a number.

    Returns:
        A Keras optimizer.

    Raises:
        ConfigError: the name or an option is unknown, a setting is set that this optimizer does not
            have, or tensorflow-addons is not installed.

    Example:
        >>> make_optimizer(OptimizerConfig(name="SGD", momentum=0.9), 0.01).momentum
        0.9
    """
    _check_bias_factors(config)
    source, separator, name = config.name.rpartition(">")
    if not separator:
        return _build(_find(keras.optimizers, name, "train.optimizer.name"), config, schedule)
    if source != "tfa":
        raise ConfigError(
            f"train.optimizer.name: {config.name!r}: expected a Keras optimizer's name or tfa>NAME"
        )
    try:
        import tensorflow_addons as tfa
    except ImportError as error:
        raise ConfigError(
            f"train.optimizer.name: {config.name!r} needs tensorflow-addons, which exists only for "
            'TensorFlow 2.15: use the addons stack (pip install -e ".[addons]")'
        ) from error
    cls = _find(tfa.optimizers, name, "train.optimizer.name")
    if "optimizer" not in inspect.signature(cls).parameters:
        return _build(cls, config, schedule)
    options = dict(config.options)
    inner_name = options.pop("optimizer", "SGD")
    inner = _find(keras.optimizers.legacy, inner_name, "train.optimizer.options.optimizer")
    check_unused(config, ("decoupled_weight_decay",), "train.optimizer.", config.name)
    try:
        return cls(inner(**_arguments(inner, config, schedule)), **options)
    except TypeError as error:
        raise ConfigError(f"train.optimizer.options: {options}: {error}") from error


def _check_bias_factors(config):
    """A larger gradient is a larger learning rate in SGD only."""
    factors = ("bias_lr_mult", "bias_decay_mult")
    if config.name != "SGD":
        check_unused(config, factors, "train.optimizer.", f"name: {config.name}")
    elif config.decoupled_weight_decay:
        check_unused(config, factors, "train.optimizer.", "decoupled_weight_decay: true")
    elif not config.weight_decay:
        check_unused(config, ("bias_decay_mult",), "train.optimizer.", "weight_decay: 0")


def _find(module, name, key):
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        names = sorted(n for n in dir(module) if inspect.isclass(getattr(module, n)))
        raise ConfigError(f"{key}: {name!r} is none of: {', '.join(names)}")
    return found


def _build(cls, config, schedule):
    arguments = _arguments(cls, config, schedule)
    if config.decoupled_weight_decay:
        if "weight_decay" not in inspect.signature(cls).parameters:
            raise ConfigError(
                f"train.optimizer.decoupled_weight_decay: {config.name} has no weight_decay"
            )
        arguments["weight_decay"] = config.weight_decay
    try:
        return cls(**arguments, **config.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.optimizer.options: {config.options}: {error}") from error


def _arguments(cls, config, schedule):
    arguments = {"learning_rate": schedule}
    if "momentum" in inspect.signature(cls).parameters:
        arguments["momentum"] = config.momentum
    else:
        check_unused(config, ("momentum",), "train.optimizer.", cls.__name__)
    return arguments
