"""Names, layouts and errors of imports; the names come from the authors' manifest."""

import json

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.backbones import ResNet
from sepc_tf.checkpoints import (
    CheckpointError,
    export_state_dict,
    import_state_dict,
    mmdet_names,
    named_variables,
)
from sepc_tf.detectors import FSAF, RetinaNet
from sepc_tf.layers import IndependentBatchNormalization, IntegratedBatchNormalization, PConv
from sepc_tf.necks import FPN, SEPC, ConvTowers


@pytest.fixture(scope="module")
def param_sets(golden_dir):
    """Name of a model -> (key -> shape), as the authors' code has them."""
    manifest = json.loads((golden_dir / "manifest.json").read_text())
    return {
        name: {key: tuple(shape) for key, shape, _ in params}
        for name, params in manifest["param_sets"].items()
    }


def small_detector(towers=None, num_classes=2):
    detector = RetinaNet.from_parts(
        ResNet(18, width=8, name="backbone"),
        FPN(4, name="fpn"),
        towers or SEPC.variant("sepc_lite", filters=4, num_convs=1, name="towers"),
        num_classes,
    )
    detector.build((None, None, None, 3))
    return detector


def randomise(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in named_variables(model).values():
        variable.assign(rng.standard_normal(variable.shape).astype(np.float32))


def shapes(state_dict):
    return {key: value.shape for key, value in state_dict.items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("backbone_r50", {}),
        ("backbone_r50_dcn_c3c5", {"deformable_stages": (3, 4, 5)}),
    ],
)
def test_backbone_keys_are_the_authors(param_sets, name, options):
    backbone = ResNet(50, **options)
    backbone.build((None, None, None, 3))
    assert shapes(export_state_dict(backbone)) == param_sets[name]


@pytest.mark.parametrize(
    ("name", "variant"),
    [("pconv", "pconv"), ("ibn", "pconv_ibn"), ("sepclite", "sepc_lite"), ("sepc", "sepc")],
)
def test_neck_keys_are_the_authors(param_sets, name, variant):
    neck = SEPC.variant(variant)
    neck.build([(None, None, None, 256)] * 5)
    assert shapes(export_state_dict(neck)) == param_sets[f"sepc_neck_{name}"]


@pytest.mark.parametrize(
    ("options", "first", "norm", "extras"),
    [
        ({"min_level": 2, "extra_levels": "pool"}, "lateral_convs.0.conv.bias", None, 0),
        ({"norm": "group"}, "lateral_convs.0.conv.weight", "fpn_convs.4.gn.weight", 2),
    ],
)
def test_keys_of_fpn_variants(options, first, norm, extras):
    fpn = FPN(32, **options)
    fpn.build([(None, None, None, 4)] * (6 - fpn.min_level))
    keys = export_state_dict(fpn)
    assert first in keys and (norm is None or norm in keys)
    convs = {key.split(".")[1] for key in keys if key.startswith("fpn_convs")}
    assert convs == {str(i) for i in range(6 - fpn.min_level + extras)}


@pytest.mark.parametrize(
    ("name", "cls", "variant"),
    [
        ("detector_retina_baseline", RetinaNet, None),
        ("detector_retina_sepclite", RetinaNet, "sepc_lite"),
        ("detector_fsaf_sepc", FSAF, "sepc"),
    ],
)
def test_detector_keys_are_the_authors(param_sets, name, cls, variant):
    towers = SEPC.variant(variant) if variant else ConvTowers()
    detector = cls.from_parts(ResNet(50), FPN(), towers, 80)
    detector.build((None, None, None, 3))
    assert shapes(export_state_dict(detector)) == param_sets[name]


@pytest.mark.parametrize("towers", ["sepc", "plain", "deformable"])
def test_round_trip(towers):
    def detector():
        if towers == "sepc":
            return small_detector(SEPC.variant("sepc", filters=4, num_convs=2, name="towers"))
        deformable = towers == "deformable"
        return small_detector(ConvTowers(4, 2, deformable=deformable, name="towers"))

    source, target = detector(), detector()
    randomise(source)
    state_dict = export_state_dict(source)
    report = import_state_dict(target, state_dict)
    expected = named_variables(source)
    for path, variable in named_variables(target).items():
        np.testing.assert_array_equal(variable, expected[path])
    counters = {key for key in state_dict if key.endswith("num_batches_tracked")}
    assert {key for _, key in report.assigned} | counters == set(state_dict)
    assert "backbone.layer1.0.conv1.weight" in str(report)
    x = tf.ones([1, 64, 64, 3])
    np.testing.assert_array_equal(source(x)["classification"][0], target(x)["classification"][0])


def test_a_kernel_is_transposed_not_reshaped():
    pconv = PConv(6)
    pconv.build([(None, None, None, 4)] * 2)
    randomise(pconv)
    exported = export_state_dict(pconv)
    assert exported["Pconv.0.weight"].shape == (6, 4, 3, 3)
    assert exported["Pconv.0.weight"][5, 1, 2, 0] == pconv.coarser.kernel.numpy()[2, 0, 1, 5]
    assert mmdet_names(pconv)["finer/kernel"] == ("Pconv.2.weight", "hwio")


def test_a_norm_alone():
    norm = IntegratedBatchNormalization()
    norm.build([(None, None, None, 4)])
    randomise(norm)
    state_dict = export_state_dict(norm)
    assert set(state_dict) == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    import_state_dict(norm, state_dict)


def test_everything_wrong_is_listed_and_nothing_assigned():
    detector = small_detector()
    before = {path: v.numpy() for path, v in named_variables(detector).items()}
    other = small_detector()
    randomise(other)
    state_dict = export_state_dict(other)
    del state_dict["neck.1.lconv.bias"]
    state_dict["bbox_head.retina_cls.weight"] = np.zeros([27, 4, 3, 3], np.float32)
    state_dict["neck.1.tail.weight"] = np.zeros([3], np.float32)
    state_dict["backbone.layer1.0.bn3.num_batches_tracked"] = np.zeros([], np.int64)
    with pytest.raises(CheckpointError) as error:
        import_state_dict(detector, state_dict)
    message = str(error.value)
    for part in (
        "4 problems",
        "missing: neck.1.lconv.bias (4,) (for towers/box_conv/bias)",
        "bbox_head.retina_cls.weight: expected (18, 4, 3, 3), got (27, 4, 3, 3)",
        "unexpected: neck.1.tail.weight (3,)",
        "unexpected: backbone.layer1.0.bn3.num_batches_tracked",
    ):
        assert part in message
    for path, variable in named_variables(detector).items():
        np.testing.assert_array_equal(variable, before[path])


def test_a_new_classifier_is_kept_by_ignoring_the_old_one():
    source, target = small_detector(num_classes=2), small_detector(num_classes=3)
    randomise(source)
    kernel = target.head.classification.kernel.numpy()
    report = import_state_dict(
        target, export_state_dict(source), ignore=("bbox_head.retina_cls.*",)
    )
    assert report.ignored == ["bbox_head.retina_cls.weight", "bbox_head.retina_cls.bias"]
    assert report.kept == ["head/classification/kernel", "head/classification/bias"]
    np.testing.assert_array_equal(target.head.classification.kernel, kernel)
    np.testing.assert_array_equal(target.head.box.kernel, source.head.box.kernel)
    assert "2 variables kept their values" in str(report)


def test_layers_that_mmdetection_does_not_have():
    neck = SEPC(4, num_convs=1, shared=False)
    neck.build([(None, None, None, 4)])
    with pytest.raises(CheckpointError, match=r"'cls_pconv_0/same/kernel' has no counterpart"):
        mmdet_names(neck)


def test_statistics_of_each_level_do_not_fit_one_norm():
    norm = IndependentBatchNormalization()
    norm.build([(None, None, None, 4)] * 3)
    state_dict = {name: np.zeros(4) for name in ("weight", "bias", "running_mean", "running_var")}
    with pytest.raises(CheckpointError, match=r"weight: expected \(3, 4\), got \(4,\)"):
        import_state_dict(norm, state_dict)
