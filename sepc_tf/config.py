"""Typed configuration: dataclasses, the values of YAML files (`config_files`), dotted overrides.

Every value is checked against the dataclasses that stand beside the parts they configure: a
misspelt key, a wrong type or a value out of range is one error that names the key, the file, and
what is allowed.

Example:
    >>> config = load_config("configs/demo_sepc_lite.yaml", ["train.epochs=2"])
    >>> config.detector.head.variant
    'sepc_lite'
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from sepc_tf.backbones.config import BackboneConfig
from sepc_tf.config_files import find_config, inherited_values, parse_yaml
from sepc_tf.data.config import OF_A_SOURCE, DataConfig, SplitConfig
from sepc_tf.detectors.config import DetectorConfig
from sepc_tf.errors import ConfigError
from sepc_tf.evaluation.config import EvaluationConfig
from sepc_tf.necks.config import HeadConfig
from sepc_tf.settings import check_settings, merge, resolved, setting
from sepc_tf.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from sepc_tf.zoo import check_detector

__all__ = [
    "BackboneConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DetectorConfig",
    "EvaluationConfig",
    "HeadConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "SplitConfig",
    "TrainConfig",
    "config_to_dict",
    "config_to_yaml",
    "differences",
    "load_config",
]


@dataclass
class Config:
    """Everything that a training needs."""

    detector: DetectorConfig = setting(DetectorConfig())
    data: DataConfig = setting(DataConfig())
    train: TrainConfig = setting(TrainConfig())
    evaluation: EvaluationConfig = setting(EvaluationConfig())


def load_config(path: str | Path, overrides: tuple | list = ()) -> Config:
    """Reads a YAML file with everything it inherits, applies overrides, and checks all values.

    A file or override that names another `data.source` than the files before it starts with the
    defaults of where the data is: paths that it inherits belong to the other source.

    Args:
        path: the YAML file, or the name of a packaged config, as "demo_sepc_lite".
        overrides: strings `"dotted.key=value"`; the value is read as YAML.

    Returns:
        A `Config`.

    Raises:
        ConfigError: a file is missing or no valid YAML, a key is unknown, a value has the wrong
            type or is none of the choices.
    """
    config = OmegaConf.structured(Config)
    path = find_config(path)
    # Overrides have no order: the source comes before the places that it reads.
    ordered = sorted(overrides, key=lambda override: not override.startswith("data.source="))
    for source, values in [*inherited_values(path), *map(_override, ordered)]:
        before = config.data.source
        merged = merge(config, values, Config, "", source)
        if merged.data.source != before:
            for name in OF_A_SOURCE:
                config.data[name] = getattr(DataConfig(), name)
            merged = merge(config, values, Config, "", source)
        config = merged
    config = resolved(config, path)
    _check_values(config, path)
    return config


def config_to_dict(config: Config) -> dict:
    """Returns `config` as plain nested dicts and lists."""
    return dataclasses.asdict(config)


def config_to_yaml(config: Config) -> str:
    """Returns `config` as YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False)


def differences(first: Config, second: Config) -> list[str]:
    """Returns `["key: a -> b", ...]` for every value in which two configs differ."""
    flat_first, flat_second = _flatten(config_to_dict(first)), _flatten(config_to_dict(second))
    return [
        f"{key}: {flat_first.get(key)!r} -> {flat_second.get(key)!r}"
        for key in {**flat_first, **flat_second}
        if flat_first.get(key) != flat_second.get(key)
    ]


def _override(text):
    """(source for messages, nested values) of `key=value`."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {text!r}: expected key=value, as train.epochs=2")
    try:
        values = parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is no YAML ({error})") from error
    for part in reversed(key.split(".")):
        values = {part: values}
    return f"override {text!r}", values


def _flatten(values, prefix=""):
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _check_values(config, path):
    check_settings(config, "", path)
    config.detector = check_detector(config.detector, path)
    sides = config.data.short_side
    if not sides or (config.data.short_side_mode == "range" and len(sides) != 2):
        raise ConfigError(
            f"{path}: data.short_side: {sides}: expected positive sizes in pixels, exactly two of "
            "them (smallest, largest) with data.short_side_mode: range"
        )
    for key in ("mean", "std"):
        if len(getattr(config.data, key)) != 3:
            raise ConfigError(
                f"{path}: data.{key}: expected three numbers, in the order of data.channel_order"
            )
    if config.data.semantic_maps is not None:
        semantic = getattr(config.detector.options, "semantic", None)
        if semantic is None or not semantic.enabled:
            raise ConfigError(
                f"{path}: data.semantic_maps has no effect: only detector.type: htc, with "
                "detector.options.semantic.enabled, learns from them; leave it out"
            )
        if semantic.classes is None:
            raise ConfigError(
                f"{path}: data.semantic_maps needs detector.options.semantic.classes, the number "
                "of labels in the maps: 183 for COCO-stuff"
            )
    if config.train.strategy == "mirrored" and config.train.batch_size < config.train.cpu_replicas:
        raise ConfigError(
            f"{path}: train.batch_size: {config.train.batch_size} images cannot be split over "
            f"train.cpu_replicas: {config.train.cpu_replicas}; raise it or lower cpu_replicas"
        )
