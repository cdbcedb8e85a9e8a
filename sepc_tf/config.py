"""Typed configuration: dataclasses, YAML files that inherit from each other, dotted overrides.

A YAML file may name the files it inherits from in `_base_` (a path or a list of paths, relative to
the file); later values win over earlier ones. Every value is checked against the dataclasses that
stand beside the parts they configure: a misspelt key, a wrong type or a value out of range is one
error that names the key, the file, and what is allowed.

Example:
    >>> config = load_config("configs/demo_sepc_lite.yaml", ["train.epochs=2"])
    >>> config.detector.head.variant
    'sepc_lite'
"""

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from sepc_tf.backbones.config import BackboneConfig
from sepc_tf.data.config import DataConfig, SplitConfig
from sepc_tf.detectors.config import DetectorConfig
from sepc_tf.errors import ConfigError
from sepc_tf.necks.config import HeadConfig
from sepc_tf.settings import check_settings, merge, setting
from sepc_tf.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from sepc_tf.zoo import check_detector

__all__ = [
    "BackboneConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DetectorConfig",
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


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-7` is a number, as it is everywhere else, and no key stands twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; raises `yaml.YAMLError`.

    Example:
        >>> parse_yaml("epsilon: 1e-7")
        {'epsilon': 1e-07}
    """
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def load_config(path: str | Path, overrides: tuple | list = ()) -> Config:
    """Reads a YAML file with everything it inherits, applies overrides, and checks all values.

    Args:
        path: the YAML file.
        overrides: strings `"dotted.key=value"`; the value is read as YAML.

    Returns:
        A `Config`.

    Raises:
        ConfigError: a file is missing or no valid YAML, a key is unknown, a value has the wrong
            type or is none of the choices.
    """
    config = OmegaConf.structured(Config)
    for source, values in _inherited_values(Path(path), ()):
        config = merge(config, values, Config, "", source)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r}: expected key=value, as train.epochs=2")
        try:
            parsed = parse_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is no YAML ({error})") from error
        for part in reversed(key.split(".")):
            parsed = {part: parsed}
        config = merge(config, parsed, Config, "", f"override {override!r}")
    config = OmegaConf.to_object(config)
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


def _inherited_values(path, children):
    """Yields (file, values) of every file `path` inherits from, outermost first, then its own."""
    if path.resolve() in children:
        raise ConfigError(f"{path}: inherits from itself (through _base_)")
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist{_similar_files(path)}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got a {type(values).__name__}")
    bases = values.pop("_base_", [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _inherited_values(path.parent / base, (*children, path.resolve()))
    yield path, values


def _similar_files(path):
    names = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    similar = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(similar)}?" if similar else ""


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
            raise ConfigError(f"{path}: data.{key}: expected three numbers (red, green, blue)")
    if config.train.strategy == "mirrored" and config.train.batch_size < config.train.cpu_replicas:
        raise ConfigError(
            f"{path}: train.batch_size: {config.train.batch_size} images cannot be split over "
            f"train.cpu_replicas: {config.train.cpu_replicas}; raise it or lower cpu_replicas"
        )
