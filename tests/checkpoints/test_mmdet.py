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
from sepc_tf.necks import BFP, FPN, HRFPN, NASFPN, PAFPN, SEPC, ConvTowers


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
    ("name", "neck", "channels"),
    [
        ("neck_fpn_gn", FPN(norm="group"), (512, 1024, 2048)),
        ("neck_pafpn_c2", PAFPN(min_level=2, extra_levels="pool"), (256, 512, 1024, 2048)),
        ("neck_nasfpn_1cell", NASFPN(num_cells=1), (512, 1024, 2048)),
        ("neck_hrfpn", HRFPN(), (32, 64, 128, 256)),
        ("neck_bfp", BFP(), [256] * 5),
    ],
)
def test_keys_of_fusion_necks_are_the_authors(golden_dir, name, neck, channels):
    path = golden_dir.parent / "golden_zoo/manifest.json"
    if not path.is_file():
        pytest.skip("no golden data of the other necks (set SEPC_TF_SHARED)")
    neck.build([(None, None, None, c) for c in channels])
    # neck_bfp is the list [FPN, BFP].
    expected = {
        key.removeprefix("1."): tuple(shape)
        for key, shape, _ in json.loads(path.read_text())["param_sets"][name]
        if not key.startswith("0.")
    }
    assert shapes(export_state_dict(neck)) == expected


def test_several_necks_are_numbered():
    detector = RetinaNet.from_parts(
        ResNet(18, width=8, name="backbone"),
        [FPN(4, name="fpn"), BFP(name="bfp")],
        SEPC.variant("sepc_lite", filters=4, num_convs=1, name="towers"),
        2,
    )
    keys = export_state_dict(detector)
    assert "neck.0.lateral_convs.0.conv.weight" in keys
    assert "neck.1.refine.conv_out.conv.bias" in keys and "neck.2.cconv.weight" in keys


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
    state_dict["backbone.bn1.weight"] = np.full_like(state_dict["backbone.bn1.weight"], np.nan)
    with pytest.raises(CheckpointError) as error:
        import_state_dict(detector, state_dict)
    message = str(error.value)
    for part in (
        "5 problems",
        "NaN or infinity: backbone.bn1.weight",
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
