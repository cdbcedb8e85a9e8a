"""Whole detectors, weights through the checkpoint import, against the authors' raw outputs."""

import sys

import pytest
import tensorflow as tf

from sepc_tf.backbones import ResNet
from sepc_tf.checkpoints import import_state_dict
from sepc_tf.detectors import FSAF, FreeAnchor, RetinaNet
from sepc_tf.necks import FPN, SEPC, ConvTowers

CASES = [
    "freeanchor_sepc",
    "fsaf_baseline",
    "fsaf_sepc",
    "retina_baseline",
    "retina_ibn",
    "retina_pconv",
    "retina_sepc",
    "retina_sepc_pad1",
    "retina_sepclite",
]
HEADS = {
    "SepcFreeAnchorRetinaHead": FreeAnchor,
    "FSAFHead": FSAF,
    "RetinaHead": RetinaNet,
    "SepcRetinaHead": RetinaNet,
}


@pytest.fixture(scope="module")
def recipe(golden_dir):
    sys.path.insert(0, str(golden_dir))
    try:
        import recipe
    finally:
        sys.path.pop(0)
    return recipe


def build(config):
    """The detector of a golden case's mmdetection config."""
    model = config["model"]
    neck = model["neck"]
    if isinstance(neck, dict):
        towers = ConvTowers(num_convs=model["bbox_head"]["stacked_convs"], name="towers")
    else:
        sepc = neck[1]
        towers = SEPC(
            num_convs=sepc["Pconv_num"],
            deformable=sepc["pconv_deform"],
            extra_deformable=sepc["lcconv_deform"],
            normalization="integrated" if sepc["iBN"] else None,
            extra_padding="same" if config["lc_padding"] else "valid",
            name="towers",
        )
    return HEADS[model["bbox_head"]["type"]].from_parts(
        backbone=ResNet(depth=model["backbone"]["depth"], name="backbone"),
        fpn=FPN(name="fpn"),
        towers=towers,
        num_classes=model["bbox_head"]["num_classes"] - 1,
        convention="mmdet1",
    )


@pytest.mark.parametrize("name", CASES)
def test_raw_outputs_equal_the_authors(recipe, name):
    case = recipe.load_case(f"detector_{name}")
    detector = build(case.config)
    import_state_dict(detector, case.params())
    (image,) = case.inputs().values()
    outputs = tf.function(detector)(tf.constant(image.transpose(0, 2, 3, 1)), training=False)
    for kind, key in (("classification", "cls"), ("box", "reg")):
        for i, got in enumerate(outputs[kind]):
            difference = case.check(f"out.{key}.{i}", got.numpy().transpose(0, 3, 1, 2))
            assert difference["max_abs"] <= 1e-4 * difference["max_want"], (key, i)
            assert difference["rel_abssum"] <= 1e-4, (key, i)
    if case.name == "detector_retina_baseline":
        features = detector.backbone(tf.constant(image.transpose(0, 2, 3, 1)), training=False)
        for i, got in enumerate(detector.fpn(features[-3:])):
            difference = case.check(f"out.fpn.{i}", got.numpy().transpose(0, 3, 1, 2))
            assert difference["max_abs"] <= 1e-4 * difference["max_want"]


def test_every_case_is_listed(recipe):
    cases = {name for name in recipe.manifest()["cases"] if name.startswith("detector_")}
    assert cases == {f"detector_{name}" for name in CASES}
