"""Family of cases: backbones and whole detectors in evaluation."""

from __future__ import annotations

import tensorflow as tf

from sepc_tf.checkpoints import import_state_dict
from sepc_tf.config import BackboneConfig, DetectorConfig, HeadConfig
from sepc_tf.necks.sepc import VARIANTS
from sepc_tf.parity.comparing import NETWORK_TOLERANCE, Comparison
from sepc_tf.parity.fusion import neck_config
from sepc_tf.parity.golden import nchw, nhwc
from sepc_tf.zoo import build_backbone, build_detector


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
    if "backbone" in config:
        return check_backbone, NETWORK_TOLERANCE
    model = config.get("model")
    if isinstance(model, dict) and detector_type(model.get("bbox_head")) is not None:
        return check_detector, NETWORK_TOLERANCE
    return None


def detector_type(head) -> str | None:
    """Our name of the detector that an mmdetection `bbox_head` belongs to; None if it is none."""
    kind = head["type"] if isinstance(head, dict) else ""
    for name, ours in (("FreeAnchor", "free_anchor"), ("FSAF", "fsaf"), ("Retina", "retinanet")):
        if name in kind:
            return ours
    return None


def backbone_config(backbone):
    """`BackboneConfig` of an mmdetection `backbone`."""
    deformed = backbone.get("stage_with_dcn", ())
    return BackboneConfig(
        depth=backbone["depth"],
        groups=backbone.get("groups", 1),
        base_width=backbone.get("base_width", 64),
        deformable_stages=[stage for stage, dcn in enumerate(deformed, start=2) if dcn],
        frozen_stages=backbone.get("frozen_stages", -1),
        style=backbone.get("style", "pytorch"),
    )


def detector_config(model, lc_padding):
    """`DetectorConfig` of an mmdetection `model`.

    Args:
        model: dict with `backbone`, `neck` (an FPN, or the list of an FPN and a SEPC), `bbox_head`.
        lc_padding: padding of the two extra convolutions of SEPC: 0 in the authors' code.
    """
    neck, head = model["neck"], model["bbox_head"]
    if isinstance(neck, dict):
        fpn, options = neck, {"variant": "baseline", "num_convs": head["stacked_convs"]}
    else:
        fpn, sepc = neck
        wanted = {
            "deformable": sepc["pconv_deform"],
            "extra_deformable": sepc["lcconv_deform"],
            "normalization": "integrated" if sepc["iBN"] else None,
        }
        variant = next(name for name, options in VARIANTS.items() if options == wanted)
        options = {"variant": variant, "num_convs": sepc["Pconv_num"]}
    return DetectorConfig(
        type=detector_type(head),
        convention="modern" if lc_padding else "mmdet1",
        backbone=backbone_config(model["backbone"]),
        necks=[neck_config(fpn)],
        head=HeadConfig(filters=fpn["out_channels"], **options),
    )


def check_backbone(case, comparison: Comparison) -> None:
    """C2 to C5 of a backbone in evaluation."""
    image = nhwc(case.inputs()["img"])
    backbone = build_backbone(backbone_config(case.config["backbone"]))
    backbone.build((None, None, None, 3))
    import_state_dict(backbone, case.params())
    features = tf.function(backbone, autograph=False)(image, training=False)
    for level, feature in enumerate(features, start=2):
        comparison.output(f"out.c{level}", nchw(feature))


def check_detector(case, comparison: Comparison) -> None:
    """Raw outputs of a whole detector in evaluation; where stored, of its backbone and FPN."""
    model = case.config["model"]
    detector = build_detector(
        detector_config(model, case.config["lc_padding"]),
        num_classes=model["bbox_head"]["num_classes"] - 1,
    )
    import_state_dict(detector, case.params())

    @tf.function(autograph=False)
    def run(image):
        features = detector.backbone(image, training=False)
        pyramid = detector.pyramid(image, training=False)
        return features, pyramid, detector(image, training=False)

    features, pyramid, outputs = run(nhwc(case.inputs()["img"]))
    groups = {
        "backbone": features,
        "fpn": pyramid,
        "cls": outputs["classification"],
        "reg": outputs["box"],
    }
    for name, maps in groups.items():
        for i, level in enumerate(maps):
            if f"out.{name}.{i}" in case.output_specs:
                comparison.output(f"out.{name}.{i}", nchw(level))
