"""Optimizers by name, from Keras or (on the addons stack) from tensorflow-addons."""

import inspect

import keras

from sepc_tf.errors import ConfigError


def make_optimizer(config, schedule):
    """Builds the configured optimizer.

    Clipping and L2 weight decay belong to the detector's train step, which needs the gradients
    summed over all replicas; here only decoupled weight decay is handed on.

    Args:
        config: a `sepc_tf.config.OptimizerConfig`. `name` is a Keras optimizer ("SGD", "AdamW") or
            "tfa>NAME"; a tensorflow-addons wrapper such as "tfa>Lookahead" wraps
            `options.optimizer` ("SGD" unless given).
        schedule: a learning-rate schedule or a number.

    Returns:
        A Keras optimizer.

    Raises:
        ConfigError: the name or an option is unknown, or tensorflow-addons is not installed.
    """
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
    arguments = {"learning_rate": schedule}
    if "momentum" in inspect.signature(inner).parameters:
        arguments["momentum"] = config.momentum
    try:
        return cls(inner(**arguments), **options)
    except TypeError as error:
        raise ConfigError(f"train.optimizer.options: {options}: {error}") from error


def _find(module, name, key):
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        names = sorted(n for n in dir(module) if inspect.isclass(getattr(module, n)))
        raise ConfigError(f"{key}: {name!r} is none of: {', '.join(names)}")
    return found


def _build(cls, config, schedule):
    accepted = inspect.signature(cls).parameters
    arguments = {"learning_rate": schedule}
    if "momentum" in accepted:
        arguments["momentum"] = config.momentum
    if config.decoupled_weight_decay:
        if "weight_decay" not in accepted:
            raise ConfigError(
                f"train.optimizer.decoupled_weight_decay: {config.name} has no weight_decay"
            )
        arguments["weight_decay"] = config.weight_decay
    try:
        return cls(**arguments, **config.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.optimizer.options: {config.options}: {error}") from error
