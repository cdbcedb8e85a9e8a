"""From a config to a built detector, and the table of everything that can be built."""

import keras_cv

from sepc_tf.backbones import ResNet
from sepc_tf.checkpoints import load_backbone_weights
from sepc_tf.config import ConfigError
from sepc_tf.detectors import FSAF, FreeAnchor, RetinaNet
from sepc_tf.necks import FPN, SEPC, ConvTowers

DETECTORS = {"retinanet": RetinaNet, "free_anchor": FreeAnchor, "fsaf": FSAF}
SEPC_VARIANTS = ("pconv", "pconv_ibn", "sepc_lite", "sepc")
VARIANTS = ("baseline", "dcn", *SEPC_VARIANTS)


def build_detector(config, num_classes):
    """Builds the detector that a config describes, with freshly initialised weights.

    Args:
        config: a `sepc_tf.config.DetectorConfig`.
        num_classes: number of object classes (without background).

    Returns:
        A `sepc_tf.detectors.Detector`, all weights created.

    Raises:
        ConfigError: an unknown backbone, or weights that cannot be loaded.

    Example:
        >>> detector = build_detector(DetectorConfig(), num_classes=80)
        >>> outputs = detector(tf.zeros([1, 800, 1344, 3]))
    """
    detector = DETECTORS[config.type].from_parts(
        backbone=build_backbone(config.backbone),
        fpn=FPN(filters=config.head.filters, name="fpn"),
        towers=build_towers(config.head, config.convention),
        num_classes=num_classes,
        convention=config.convention,
        score_threshold=config.score_threshold,
        nms_iou=config.nms_iou,
        nms_pre=config.nms_pre,
        max_detections=config.max_detections,
        name=config.type,
    )
    if config.backbone.weights:
        load_backbone_weights(detector.backbone, config.backbone.weights)
    return detector


def build_backbone(config):
    """Builds the backbone of a `sepc_tf.config.BackboneConfig`; see `build_detector`."""
    source, separator, name = config.type.rpartition(">")
    if separator:
        cls = getattr(keras_cv.models, name, None)
        if source == "keras_cv" and cls is not None:
            return cls(include_rescaling=False, input_shape=(None, None, 3), **config.options)
    if config.type != "resnet":
        raise ConfigError(
            f"detector.backbone.type: {config.type!r}: expected resnet or keras_cv>NAME with a "
            "backbone class of keras_cv.models, as keras_cv>ResNetV2Backbone"
        )
    try:
        return ResNet(
            depth=config.depth,
            width=config.width,
            groups=config.groups,
            base_width=config.base_width,
            deformable_stages=tuple(config.deformable_stages),
            frozen_stages=config.frozen_stages,
            norm=config.norm,
            name="backbone",
        )
    except ValueError as error:
        raise ConfigError(f"detector.backbone: {error}") from error


def build_towers(config, convention="modern"):
    """Builds what lies between the FPN and the final convolutions.

    Args:
        config: a `sepc_tf.config.HeadConfig`.
        convention: "mmdet1" leaves the two extra convolutions unpadded, as the authors' code does.

    Returns:
        A layer from a pyramid to a classification pyramid and a box pyramid.
    """
    if config.variant not in SEPC_VARIANTS:
        return ConvTowers(
            num_convs=config.num_convs,
            filters=config.filters,
            deformable=config.variant == "dcn",
            name="towers",
        )
    options = {"normalization": config.normalization} if config.normalization else {}
    return SEPC.variant(
        config.variant,
        filters=config.filters,
        num_convs=config.num_convs,
        shared=config.shared,
        extra_padding="valid" if convention == "mmdet1" else "same",
        name="towers",
        **options,
    )
