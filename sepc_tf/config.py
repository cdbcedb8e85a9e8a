"""Typed configuration: dataclasses, YAML files that inherit from each other, dotted overrides.

A YAML file may name the files it inherits from in `_base_` (a path or a list of paths, relative to
the file); later values win over earlier ones. Every value is checked against the dataclasses below,
so a misspelt key or a wrong type is one error that names the key, the file, and what is allowed.

Example:
    >>> config = load_config("configs/demo_sepc_lite.yaml", ["train.epochs=2"])
    >>> config.detector.head.variant
    'sepc_lite'
"""

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sepc_tf.errors import ConfigError


@dataclass
class BackboneConfig:
    """ResNet or ResNeXt, or with `type: keras_cv>NAME` a KerasCV backbone made of `options`."""

    type: str = "resnet"
    depth: int = 50
    width: int = 64  # channels of the stem; 64 is the standard network
    groups: int = 1  # ResNeXt: 64 with base_width 4 for X101-64x4d
    base_width: int = 64
    deformable_stages: list[int] = field(default_factory=list)  # e.g. [3, 4, 5] for c3-c5
    frozen_stages: int = 1  # -1: nothing, 0: the stem, 1: stem and first stage, ...
    norm: str = "eval"  # frozen | eval (running statistics, trained gamma/beta) | sync
    weights: str | None = None  # a local file; see docs/checkpoints.md
    options: dict[str, typing.Any] = field(default_factory=dict)  # of a KerasCV backbone


@dataclass
class HeadConfig:
    variant: str = "sepc_lite"  # baseline | dcn | pconv | pconv_ibn | sepc_lite | sepc
    filters: int = 256
    num_convs: int = 4  # stacked PConvs, or convolutions per task of the plain head
    normalization: str | None = None  # null: the variant's own; integrated | single | independent
    shared: bool = True  # false: one PConv stack per task


@dataclass
class DetectorConfig:
    type: str = "retinanet"  # retinanet | free_anchor | fsaf
    convention: str = "modern"  # modern | mmdet1 (for the authors' checkpoints)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    nms_pre: int = 1000  # candidates kept per pyramid level
    max_detections: int = 100


@dataclass
class SplitConfig:
    annotations: str | None = None  # a COCO instances json
    images: str | None = None  # the folder its file names are relative to


@dataclass
class DataConfig:
    source: str = "coco"  # coco | demo | tfds
    directory: str | None = None  # demo: where it is generated; tfds: its data_dir
    train: SplitConfig = field(default_factory=SplitConfig)
    val: SplitConfig = field(default_factory=SplitConfig)
    short_side: list[int] = field(default_factory=lambda: [800])
    short_side_mode: str = "value"  # value: one of the list; range: uniform between its two
    long_side: int = 1333
    test_short_side: int = 800
    flip_probability: float = 0.5
    mean: list[float] = field(default_factory=lambda: [123.675, 116.28, 103.53])
    std: list[float] = field(default_factory=lambda: [58.395, 57.12, 57.375])
    size_divisor: int = 32
    skip_empty_images: bool = False  # leave images without boxes out of training
    corrupt_images: str = "skip"  # skip (named and counted) | stop


@dataclass
class OptimizerConfig:
    name: str = "SGD"  # a Keras optimizer, or "tfa>SGDW" on the addons stack
    learning_rate: float = 0.01  # for `reference_batch_size` images; scaled with the batch size
    reference_batch_size: int = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decoupled_weight_decay: bool = False  # false: L2, added to the gradient as PyTorch's SGD does
    clip_norm: float | None = 35.0
    options: dict[str, typing.Any] = field(default_factory=dict)  # further constructor arguments


@dataclass
class ScheduleConfig:
    type: str = "steps"  # steps | cosine | constant
    milestones: list[int] = field(default_factory=lambda: [8, 11])  # epochs
    decay: float = 0.1
    warmup_steps: int = 500
    warmup_ratio: float = 1 / 3


@dataclass
class TrainConfig:
    epochs: int = 12
    batch_size: int = 16  # images of one step over all replicas
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    strategy: str = "mirrored"  # mirrored | multi_worker (from TF_CONFIG) | one
    cpu_replicas: int = 1  # replicas of `mirrored` on a machine without a GPU
    mixed_precision: str | None = None  # mixed_float16 | mixed_bfloat16
    jit_compile: bool = False
    deterministic: bool = False  # bit-equal reruns, at some cost in speed
    ema_decay: float | None = None
    evaluate_every: int = 1  # epochs; the last epoch is always evaluated
    checkpoint_every: int = 1000  # steps; the end of an epoch always
    keep_checkpoints: int = 2
    log_every: int = 20  # steps


@dataclass
class Config:
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


CHOICES = {
    "detector.type": ("retinanet", "free_anchor", "fsaf"),
    "detector.convention": ("modern", "mmdet1"),
    "detector.head.variant": ("baseline", "dcn", "pconv", "pconv_ibn", "sepc_lite", "sepc"),
    "detector.head.normalization": (None, "integrated", "single", "independent"),
    "detector.backbone.norm": ("frozen", "eval", "sync"),
    "data.source": ("coco", "demo", "tfds"),
    "data.short_side_mode": ("value", "range"),
    "data.corrupt_images": ("skip", "stop"),
    "train.schedule.type": ("steps", "cosine", "constant"),
    "train.strategy": ("mirrored", "multi_worker", "one"),
    "train.mixed_precision": (None, "mixed_float16", "mixed_bfloat16"),
}

AT_LEAST = {
    "detector.backbone.width": 1,
    "detector.head.filters": 1,
    "detector.head.num_convs": 1,
    "data.long_side": 1,
    "data.test_short_side": 1,
    "data.size_divisor": 1,
    "train.epochs": 1,
    "train.batch_size": 1,
    "train.cpu_replicas": 1,
    "train.evaluate_every": 1,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 1,
    "train.log_every": 1,
    "train.schedule.warmup_steps": 0,
    "train.optimizer.learning_rate": 0,
}


def load_config(path, overrides=()):
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
        config = _merge(config, values, source)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r}: expected key=value, as train.epochs=2")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is no YAML ({error})") from error
        for part in reversed(key.split(".")):
            parsed = {part: parsed}
        config = _merge(config, parsed, f"override {override!r}")
    config = OmegaConf.to_object(config)
    _check_values(config, path)
    return config


def config_to_dict(config):
    """Returns `config` as plain nested dicts and lists."""
    return dataclasses.asdict(config)


def config_to_yaml(config):
    """Returns `config` as YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False)


def differences(first, second):
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
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
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


def _merge(config, values, source):
    _check_keys(values, Config, "", source)
    try:
        return OmegaConf.merge(config, values)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{source}: {key}: {reason} (expected {_type_of(key)})") from error


def _check_keys(values, dataclass_type, prefix, source):
    fields = {f.name: f.type for f in dataclasses.fields(dataclass_type)}
    for key, value in values.items():
        if key not in fields:
            similar = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {prefix}{similar[0]}? " if similar else ""
            raise ConfigError(
                f"{source}: unknown key {prefix}{key}; {hint}"
                f"allowed here: {', '.join(prefix + name for name in fields)}"
            )
        if dataclasses.is_dataclass(fields[key]):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{source}: {prefix}{key}: expected a section with keys "
                    f"{', '.join(f.name for f in dataclasses.fields(fields[key]))}, got {value!r}"
                )
            _check_keys(value, fields[key], f"{prefix}{key}.", source)


def _type_of(key):
    current = Config
    for part in key.split("[")[0].split("."):
        fields = {f.name: f.type for f in dataclasses.fields(current)}
        if part not in fields:
            break
        current = fields[part]
        if not dataclasses.is_dataclass(current):
            break
    return getattr(current, "__name__", None) if isinstance(current, type) else str(current)


def _flatten(values, prefix=""):
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _check_values(config, path):
    flat = _flatten(config_to_dict(config))
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            allowed = ", ".join("null" if c is None else c for c in choices)
            raise ConfigError(f"{path}: {key}: {flat[key]!r} is none of: {allowed}")
    for key, minimum in AT_LEAST.items():
        if flat[key] < minimum:
            raise ConfigError(f"{path}: {key}: {flat[key]} is below the smallest value, {minimum}")
    sides = config.data.short_side
    if not sides or min(sides) < 1 or (config.data.short_side_mode == "range" and len(sides) != 2):
        raise ConfigError(
            f"{path}: data.short_side: {sides}: expected positive sizes in pixels, exactly two of "
            "them (smallest, largest) with data.short_side_mode: range"
        )
    for key in ("mean", "std"):
        if len(flat[f"data.{key}"]) != 3:
            raise ConfigError(f"{path}: data.{key}: expected three numbers (red, green, blue)")
    if config.train.strategy == "mirrored" and config.train.batch_size < config.train.cpu_replicas:
        raise ConfigError(
            f"{path}: train.batch_size: {config.train.batch_size} images cannot be split over "
            f"train.cpu_replicas: {config.train.cpu_replicas}; raise it or lower cpu_replicas"
        )
