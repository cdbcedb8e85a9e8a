"""From a config to a built detector, and the tables of everything that can be built.

A detector is a class with `Options` (a dataclass of its settings) and `from_parts`; a neck is a
layer with `Options`, whose fields are its constructor's arguments, and, where it takes the maps of
a backbone, `min_level`: the number of the finest. A new one is a file of its own and a line here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from sepc_tf.backbones import KerasCVFeatures, ResNet
from sepc_tf.backbones.config import BackboneConfig
from sepc_tf.checkpoints import load_backbone_weights
from sepc_tf.compat import import_keras_cv
from sepc_tf.detectors import (
    FCOS,
    FSAF,
    HTC,
    RPN,
    CascadeRCNN,
    Detector,
    FasterRCNN,
    FreeAnchor,
    MaskRCNN,
    RepPoints,
    RetinaNet,
)
from sepc_tf.detectors.config import DetectorConfig
from sepc_tf.errors import ConfigError
from sepc_tf.layers.pyramid_normalization import NORMALIZATIONS
from sepc_tf.necks import BFP, FPN, HRFPN, NASFPN, PAFPN, SEPC, ConvTowers, PConvNeck
from sepc_tf.necks.config import HeadConfig
from sepc_tf.settings import check_exists, check_unused, typed

DETECTORS = {
    "retinanet": RetinaNet,
    "free_anchor": FreeAnchor,
    "fsaf": FSAF,
    "fcos": FCOS,
    "reppoints": RepPoints,
    "faster_rcnn": FasterRCNN,
    "cascade_rcnn": CascadeRCNN,
    "mask_rcnn": MaskRCNN,
    "htc": HTC,
}
NECKS = {
    "fpn": FPN,
    "pafpn": PAFPN,
    "nas_fpn": NASFPN,
    "bfp": BFP,
    "hrfpn": HRFPN,
    "pconv": PConvNeck,
}
SEPC_VARIANTS = ("pconv", "pconv_ibn", "sepc_lite", "sepc")
VARIANTS = ("baseline", "dcn", *SEPC_VARIANTS)


def check_detector(config: DetectorConfig, source: Any = "config") -> DetectorConfig:
    """Checks what depends on a detector's type: its options, its necks, what applies to them.

    Args:
        config: the settings; `options` and the entries of `necks` may be plain dicts.
        source: the file or the like that the values come from, for messages.

    Returns:
        The config with an instance of the detector's `Options` as `options`, and dicts with every
        setting in `necks`.

    Raises:
        ConfigError: an unknown type, key or value, or a setting that does not apply.

    Example:
        >>> check_detector(DetectorConfig(type="fsaf")).options.area_scale
        0.2
    """
    cls = _choice(DETECTORS, config.type, "detector.type", source)
    options = config.options
    if not isinstance(options, cls.Options):
        options = typed(cls.Options, options, "detector.options.", source)
    if not config.necks:
        raise ConfigError(f"{source}: detector.necks: expected at least one, as [{{type: fpn}}]")
    necks = [
        _checked_neck(neck, f"detector.necks[{i}]", source) for i, neck in enumerate(config.necks)
    ]
    try:
        build_necks(necks, config.head.filters)  # without weights: for what it refuses
        if config.nms == "soft":
            check_unused(config, ("nms_iou",), "detector.", "nms: soft")
        else:
            check_unused(config, ("soft_nms_sigma",), "detector.", f"nms: {config.nms}")
        if issubclass(cls, RPN):
            of_towers = ("variant", "num_convs", "normalization", "kernel_stddev", "shared")
            of_towers += ("scale_kernel_size",)
            check_unused(config.head, of_towers, "detector.head.", f"type: {config.type}")
            reason = f"type: {config.type} (but options.test_proposals.nms_pre has)"
            check_unused(config, ("nms_pre",), "detector.", reason)
        else:
            _check_head(config.head)
        _check_backbone(config.backbone)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    return dataclasses.replace(config, options=options, necks=necks)


def build_detector(
    config: DetectorConfig, num_classes: int, size_divisor: int = 32, seed: int = 0
) -> Detector:
    """Builds the detector that a config describes, with freshly initialised weights.

    Args:
        config: the settings.
        num_classes: number of object classes (without background).
        size_divisor: what padded image sides are multiples of (`data.size_divisor`).
        seed: what a training samples depends on it and the step (`train.seed`).

    Returns:
        A `sepc_tf.detectors.Detector`, all weights created.

    Raises:
        ConfigError: an unknown part, settings that do not fit, or weights that cannot be loaded.

    Example:
        >>> detector = build_detector(
        ...     DetectorConfig(backbone=BackboneConfig(depth=18, width=8),
        ...                    head=HeadConfig(filters=16)), num_classes=3)
        >>> detector(tf.zeros([1, 64, 96, 3]))["classification"][0].shape
        TensorShape([1, 8, 12, 27])
    """
    config = check_detector(config)
    cls = DETECTORS[config.type]
    if issubclass(cls, RPN):
        between = {"filters": config.head.filters, "sampling_seed": seed}
    else:
        between = {"towers": build_towers(config.head, config.convention)}
    try:
        detector = cls.from_parts(
            backbone=build_backbone(config.backbone),
            necks=build_necks(config.necks, config.head.filters),
            **between,
            num_classes=num_classes,
            convention=config.convention,
            options=config.options,
            size_divisor=size_divisor,
            score_threshold=config.score_threshold,
            nms=config.nms,
            nms_iou=config.nms_iou,
            soft_nms_sigma=config.soft_nms_sigma,
            nms_pre=config.nms_pre,
            max_detections=config.max_detections,
            name=config.type,
        )
    except ConfigError:
        raise
    except ValueError as error:  # of a part's constructor: it names its argument
        raise ConfigError(f"detector: {error}") from error
    if config.backbone.weights:
        check_exists("detector.backbone.weights", config.backbone.weights)
        load_backbone_weights(detector.backbone, config.backbone.weights)
    return detector


def build_backbone(config: BackboneConfig) -> keras.layers.Layer:
    """Builds a backbone; see `build_detector`."""
    _check_backbone(config)
    try:
        if config.type == "resnet":
            return ResNet(
                depth=config.depth,
                width=config.width,
                groups=config.groups,
                base_width=config.base_width,
                deformable_stages=tuple(config.deformable_stages),
                style=config.style,
                frozen_stages=config.frozen_stages,
                norm=config.norm,
                name="backbone",
            )
        cls = getattr(import_keras_cv().models, config.type.rpartition(">")[2])
        model = cls(include_rescaling=False, input_shape=(None, None, 3), **config.options)
        return KerasCVFeatures(model, config.frozen_stages, config.norm, name="backbone")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"detector.backbone: {error}") from error


def build_necks(necks: list[dict], filters: int) -> list[keras.layers.Layer]:
    """Builds the necks of a checked config, named by type.

    Args:
        necks: dicts of `type` and the settings of the type.
        filters: channels where a neck does not say.

    Returns:
        list of layers, to be called one after the other.

    Raises:
        ConfigError: settings of a neck that do not fit each other.
    """
    layers = []
    for i, neck in enumerate(necks):
        options = dict(neck)
        kind = options.pop("type")
        if "filters" in options and options["filters"] is None:
            options["filters"] = filters
        earlier = sum(isinstance(layer, NECKS[kind]) for layer in layers)
        name = f"{kind}_{earlier + 1}" if earlier else kind
        try:
            layers.append(NECKS[kind](**options, name=name))
        except ValueError as error:
            raise ConfigError(f"detector.necks[{i}]: {error}") from error
    if not hasattr(layers[0], "min_level"):
        raise ConfigError(
            f"detector.necks[0]: {necks[0]['type']} takes a pyramid; put it behind a neck that "
            "makes one, as fpn"
        )
    return layers


def build_towers(config: HeadConfig, convention: str = "modern") -> keras.layers.Layer:
    """Builds what lies between the pyramid and the final convolutions.

    Args:
        config: the settings.
        convention: "mmdet1" leaves the two extra convolutions unpadded, as the authors' code does.

    Returns:
        A layer from a pyramid to a classification pyramid and a box pyramid.
    """
    if config.variant not in SEPC_VARIANTS:
        return ConvTowers(
            num_convs=config.num_convs,
            filters=config.filters,
            deformable=config.variant == "dcn",
            norm=config.normalization,
            kernel_stddev=config.kernel_stddev,
            name="towers",
        )
    options = {"normalization": config.normalization} if config.normalization else {}
    return SEPC.variant(
        config.variant,
        filters=config.filters,
        num_convs=config.num_convs,
        shared=config.shared,
        scale_kernel_size=config.scale_kernel_size,
        kernel_stddev=config.kernel_stddev,
        extra_padding="valid" if convention == "mmdet1" else "same",
        name="towers",
        **options,
    )


def _choice(table, name, key, source):
    if name not in table:
        raise ConfigError(f"{source}: {key}: {name!r} is none of: {', '.join(table)}")
    return table[name]


def _checked_neck(neck, key, source):
    if not isinstance(neck, dict) or "type" not in neck:
        raise ConfigError(f"{source}: {key}: expected a section with a type, got {neck!r}")
    values = {name: value for name, value in neck.items() if name != "type"}
    cls = _choice(NECKS, neck["type"], f"{key}.type", source)
    options = typed(cls.Options, values, f"{key}.", source)
    return {"type": neck["type"], **dataclasses.asdict(options)}


def _check_head(config):
    reason = f"variant: {config.variant}"
    norms = (None, *NORMALIZATIONS)
    if config.variant not in SEPC_VARIANTS:
        check_unused(config, ("shared", "scale_kernel_size"), "detector.head.", reason)
        norms = (None, "group")
    if config.normalization not in norms:
        allowed = ", ".join("null" if norm is None else norm for norm in norms)
        raise ConfigError(
            f"detector.head.normalization: {config.normalization!r} has no effect on {reason}; "
            f"expected one of: {allowed}"
        )


def _check_backbone(config):
    prefix = "detector.backbone."
    if config.type == "resnet":
        check_unused(config, ("options",), prefix, "a ResNet")
        return
    source, _, name = config.type.rpartition(">")
    if source != "keras_cv" or not hasattr(import_keras_cv().models, name):
        raise ConfigError(
            f"{prefix}type: {config.type!r}: expected resnet or keras_cv>NAME with a backbone "
            "class of keras_cv.models, as keras_cv>ResNetV2Backbone"
        )
    of_resnets = ("depth", "width", "groups", "base_width", "deformable_stages", "style")
    check_unused(config, of_resnets, prefix, "a KerasCV backbone (its arguments are options)")
