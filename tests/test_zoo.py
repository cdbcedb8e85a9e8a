"""Every detector with every head: build, one training step, predict, save, load, export."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints import named_variables
from sepc_tf.config import (
    BackboneConfig,
    Config,
    ConfigError,
    DataConfig,
    DetectorConfig,
    HeadConfig,
)
from sepc_tf.detectors import RPN, CascadeRCNN
from sepc_tf.export import export
from sepc_tf.inference import detect_images
from sepc_tf.runs import Run
from sepc_tf.zoo import DETECTORS, NECKS, VARIANTS, build_backbone, build_detector, check_detector

IMAGE = (64, 96)
TWO_STAGE = [name for name, cls in DETECTORS.items() if issubclass(cls, RPN)]
# A dense detector with every head; a two-stage one with PConv behind its FPN.
DENSE = [(name, variant) for name in DETECTORS if name not in TWO_STAGE for variant in VARIANTS]
MODELS = [*DENSE, *[(name, "pconv") for name in TWO_STAGE]]


def tiny(detector_type, variant, **options):
    head = HeadConfig(variant=variant, filters=8, num_convs=2)
    if detector_type in TWO_STAGE:
        few = {"nms_pre": 50, "nms_post": 50, "max_proposals": 50}
        sizes = {"units": 16, "sampled": 32, "train_proposals": few, "test_proposals": few}
        # Anchors that fit into the images on every level but the coarsest, and all of them learnt.
        sizes["rpn"] = {"anchors": {"scales": [2.0]}, "sampled": 4000}
        if issubclass(DETECTORS[detector_type], CascadeRCNN):
            sizes["stage_ious"], sizes["stage_weights"] = [0.5, 0.6], [1.0, 0.5]
            sizes["stage_stds"] = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1]]
        if DETECTORS[detector_type].needs_masks:
            sizes["mask"] = {"filters": 8, "num_convs": 1}
        head, options["options"] = HeadConfig(filters=8), sizes
        fpn = {"type": "fpn", "min_level": 2, "extra_levels": "pool"}
        options["necks"] = [fpn, {"type": variant, "num_convs": 1}]
    return DetectorConfig(
        type=detector_type,
        backbone=BackboneConfig(depth=18, width=4, frozen_stages=-1, norm="sync"),
        head=head,
        **options,
    )


def batch():
    generator = np.random.default_rng(0)
    return {
        "images": tf.constant(generator.normal(size=(2, *IMAGE, 3)), tf.float32),
        "image_sizes": tf.constant([[64, 96], [60, 90]]),
        "original_sizes": tf.constant([[64, 96], [60, 90]]),
        "boxes": tf.constant([[[4.0, 4.0, 40.0, 44.0], [30.0, 8.0, 90.0, 60.0]], [[-1.0] * 4] * 2]),
        "labels": tf.constant([[0, 2], [-1, -1]]),
        "image_ids": tf.constant([1, 2], tf.int64),
        # the second object has no mask
        "bitmaps": tf.constant([[1] * 600, [0] * 600], tf.uint8),
        "frames": tf.constant([[[5, 6, 30, 20], [0] * 4], [[0] * 4] * 2]),
        "offsets": tf.constant([[0, -1], [-1, -1]]),
    }


def as_parameters(models):
    """What differs between the stacks is in the layers: few models have all of them."""
    return [
        pytest.param(
            *model,
            marks=[pytest.mark.same_on_both_stacks]
            * (
                model[0] != "htc"  # has all that the other two-stage detectors have
                and model[1:] != ("sepc_lite",)
                and model[:2] not in (("retinanet", "baseline"), ("retinanet", "sepc"))
            ),
        )
        for model in models
    ]


# An export takes four times as long as the rest: once of every detector and every kind of head.
EXPORTED = [(name, "pconv" if name in TWO_STAGE else "sepc_lite") for name in DETECTORS]
EXPORTED += [("retinanet", "baseline"), ("retinanet", "sepc")]


@pytest.mark.parametrize(("detector_type", "variant"), as_parameters(MODELS))
def test_everything_buildable_trains_predicts_saves_and_loads(detector_type, variant, tmp_path):
    config = tiny(detector_type, variant, score_threshold=0.0)
    detector = check_learning_prediction_and_saving(config, tmp_path)
    if (detector_type, variant) in EXPORTED:
        check_export(detector, tmp_path)


OTHER_NECKS = {
    "pafpn": [{"type": "pafpn"}],
    "nas_fpn": [{"type": "nas_fpn", "num_cells": 1}],
    "bfp": [{"type": "fpn"}, {"type": "bfp"}],
    "hrfpn": [{"type": "hrfpn"}],
    "pconv": [{"type": "fpn"}, {"type": "pconv", "num_convs": 1}],
}


@pytest.mark.parametrize(
    ("detector_type", "variant", "neck"),
    as_parameters(
        (detector, variant, neck)
        for detector in DETECTORS
        if detector not in TWO_STAGE
        for variant in ("baseline", "sepc_lite")
        for neck in NECKS
        if neck != "fpn"
    ),
)
def test_every_other_neck_in_every_dense_detector(detector_type, variant, neck, tmp_path):
    config = tiny(detector_type, variant, score_threshold=0.0, necks=OTHER_NECKS[neck])
    detector = check_learning_prediction_and_saving(config, tmp_path)
    if (detector_type, variant) == ("retinanet", "baseline"):
        check_export(detector, tmp_path)


@pytest.mark.same_on_both_stacks
@pytest.mark.parametrize("neck", [neck for neck in NECKS if neck not in ("fpn", "pconv")])
def test_a_two_stage_detector_behind_every_other_neck(neck):
    """A step and detections; `MODELS` has FPN and PConv, with saving and exporting."""
    necks = [{**part} for part in OTHER_NECKS[neck]]
    if neck in ("pafpn", "bfp"):
        necks[0] |= {"min_level": 2, "extra_levels": "pool"}
    config = tiny("faster_rcnn", "pconv", score_threshold=0.0)
    config.necks = necks
    keras.utils.set_random_seed(0)
    detector = build_detector(config, num_classes=3)
    detector.compile(keras.optimizers.SGD(0.01))
    before = {name: v.numpy() for name, v in named_variables(detector).items()}
    logs = detector.train_step(batch())
    assert float(logs["non_finite"]) == 0.0 and float(logs["box"]) > 0.0
    kernels = [n for n in before if n.endswith("kernel") and not n.startswith(("backbone", "head"))]
    moved = [n for n in kernels if (before[n] != named_variables(detector)[n].numpy()).any()]
    assert moved and {n.split("/")[0] for n in moved} == {n.split("/")[0] for n in kernels}
    assert int(detector.predict_step(batch())["num_detections"][0]) > 0


def check_learning_prediction_and_saving(config, tmp_path):
    """Builds a detector, trains a step, predicts; saved and loaded it finds the same."""
    keras.utils.set_random_seed(0)
    detector = build_detector(config, num_classes=3)
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9), clip_norm=35.0, weight_decay=1e-4)
    before = {name: v.numpy() for name, v in named_variables(detector).items()}
    logs = detector.train_step(batch())
    assert float(logs["non_finite"]) == 0.0 and float(logs["loss"]) > 0.0
    after = {name: v.numpy() for name, v in named_variables(detector).items()}
    unchanged = [
        name
        for name in before
        if np.array_equal(before[name], after[name])
        # Nothing flows to an offset's kernel whose samples are all outside the 1 x 1 top level, nor
        # to what a softmax over the pixels ignores.
        and not ("offset" in name or name.endswith(("moving_mean", "moving_variance")))
        and name != "bfp/refine_phi/bias"
    ]
    assert not unchanged
    assert all(np.isfinite(value).all() for value in after.values())

    found = detector.predict_step(batch())
    assert found["boxes"].shape == (2, 100, 4) and int(found["num_detections"][0]) > 0
    detector.save(tmp_path / "detector.keras")
    loaded = keras.models.load_model(tmp_path / "detector.keras", compile=False)
    for name, value in loaded.predict_step(batch()).items():
        np.testing.assert_allclose(value.numpy(), found[name].numpy(), rtol=1e-5, atol=1e-5)
    return detector


def check_export(detector, tmp_path):
    """An exported detector finds the same."""
    config = Config(data=DataConfig(test_short_side=64, long_side=96))
    categories = [{"id": i, "name": str(i)} for i in range(3)]
    export(Run(config, detector, categories, tmp_path, 0), tmp_path / "served")
    images = np.random.default_rng(1).integers(0, 256, (1, 50, 70, 3)).astype(np.uint8)
    expected = detect_images(detector, config.data, tf.constant(images))
    served = tf.saved_model.load(tmp_path / "served").signatures["serving_default"]
    for name, value in served(images=tf.constant(images)).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


NORMALISED = {
    "nas_fpn": [{"type": "nas_fpn", "num_cells": 1}],
    "pconv_ibn": [
        {"type": "fpn"},
        {"type": "pconv", "num_convs": 1, "normalization": "integrated"},
    ],
}


@pytest.mark.parametrize(
    ("detector_type", "neck"),
    [
        ("retinanet", None),
        ("htc", None),
        *[
            pytest.param(name, neck, marks=pytest.mark.same_on_both_stacks)
            for name, neck in [
                *[(name, None) for name in DETECTORS if name not in ("retinanet", "htc")],
                *[("retinanet", neck) for neck in NORMALISED],
            ]
        ],
    ],
)
def test_a_step_on_two_replicas_equals_one_device(detector_type, neck, two_replicas):
    def trained(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            variant = "pconv" if detector_type in TWO_STAGE else "baseline"
            options = {"necks": NORMALISED[neck]} if neck else {}
            detector = build_detector(tiny(detector_type, variant, **options), num_classes=3)
            detector.compile(keras.optimizers.SGD(0.01), clip_norm=35.0, weight_decay=1e-4)
        data = tf.data.Dataset.from_tensors(batch()).with_options(unsharded())
        detector.fit(data, verbose=0)
        return {name: v.numpy() for name, v in named_variables(detector).items()}

    one, two = trained(tf.distribute.get_strategy()), trained(two_replicas)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def unsharded():
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_the_authors_convention_leaves_the_extra_convolutions_unpadded(convention):
    detector = build_detector(tiny("retinanet", "sepc", convention=convention), num_classes=3)
    outputs = detector(tf.zeros([1, 384, 384, 3]))
    border = 2 if convention == "mmdet1" else 0
    assert [m.shape[1] for m in outputs["box"]] == [s - border for s in (48, 24, 12, 6, 3)]


def test_a_keras_cv_backbone_can_be_named():
    options = {"stackwise_channels": [8, 16, 32, 64], "stackwise_depth": [1, 1, 1, 1]}
    config = tiny("retinanet", "sepc_lite")
    config.backbone = BackboneConfig(type="keras_cv>CSPDarkNetBackbone", options=options)
    outputs = build_detector(config, num_classes=3)(tf.zeros([1, 64, 96, 3]))
    assert [tuple(m.shape) for m in outputs["box"]][:2] == [(1, 8, 12, 36), (1, 4, 6, 36)]


@pytest.mark.parametrize("name", ["resnett", "keras_cv>Nothing", "other>ResNet"])
def test_an_unknown_backbone_is_a_clear_error(name):
    with pytest.raises(ConfigError, match="expected resnet or keras_cv>NAME"):
        build_backbone(BackboneConfig(type=name))


def test_keras_cv_backbones_heed_frozen_stages_and_norm_or_say_why_not(tmp_path):
    options = {"stackwise_channels": [8, 16, 32, 64], "stackwise_depth": [1, 1, 1, 1]}
    config = BackboneConfig(
        type="keras_cv>CSPDarkNetBackbone", options=options, frozen_stages=3, norm="frozen"
    )
    layer = build_backbone(config)
    kernels = [n for n in named_variables(layer) if n.endswith("kernel")]
    trained = {id(v) for v in layer.trainable_variables}
    moving = [n for n in kernels if id(named_variables(layer)[n]) in trained]
    assert 0 < len(moving) < len(kernels)
    config.depth = 18
    with pytest.raises(ConfigError, match=r"backbone.depth: 18 has no effect on a KerasCV backbon"):
        build_backbone(config)
    with pytest.raises(ConfigError, match=r"backbone.options: .* has no effect on a ResNet"):
        build_backbone(BackboneConfig(options=options))
    with pytest.raises(ConfigError, match=r"detector.backbone: .*no level P1.*frozen_stages=0"):
        build_backbone(
            BackboneConfig(
                type="keras_cv>ResNetBackbone",
                frozen_stages=0,
                options={
                    "stackwise_filters": [64, 8, 8, 8],
                    "stackwise_blocks": [1, 1, 1, 1],
                    "stackwise_strides": [1, 2, 2, 2],
                    "block_type": "basic_block",
                },
            )
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "yolo"}, "detector.type: 'yolo' is none of: retinanet, free_anchor, fsaf"),
        ({"options": {"focal_alhpa": 1}}, "detector.options.focal_alhpa; did you mean"),
        ({"options": {"anchors": {"ratios": [0]}}}, r"options.anchors.ratios: \[0.0\]: expected"),
        ({"type": "fsaf", "options": {"bag_size": 9}}, "unknown key detector.options.bag_size"),
        ({"options": {"box_loss": "l3"}}, "options.box_loss: 'l3' is none of: smooth_l1, iou"),
        ({"necks": []}, "detector.necks: expected at least one"),
        ({"necks": [{"type": "bfp"}]}, r"necks\[0\]: bfp takes a pyramid; put it behind"),
        ({"necks": [{"type": "nas_fpn", "num_cells": 0}]}, r"necks\[0\].num_cells: 0: expected"),
        ({"necks": [{"type": "bifpn"}]}, r"necks\[0\].type: 'bifpn' is none of: fpn"),
        ({"necks": [{"type": "fpn", "levels": 3}]}, r"unknown key detector.necks\[0\].levels"),
        ({"necks": ["fpn"]}, r"necks\[0\]: expected a section with a type, got 'fpn'"),
        (
            {"necks": [{"type": "fpn", "extra_levels": "pool", "extra_relu": True}]},
            r"necks\[0\]: extra_relu: True has no effect on extra_levels: pool",
        ),
        ({"nms": "soft", "nms_iou": 0.3}, "detector.nms_iou: 0.3 has no effect on nms: soft"),
        ({"soft_nms_sigma": 0.3}, "soft_nms_sigma: 0.3 has no effect on nms: hard"),
        (
            {"head": HeadConfig(variant="baseline", normalization="single")},
            "head.normalization: 'single' has no effect on variant: baseline",
        ),
        (
            {"head": HeadConfig(variant="sepc", normalization="group")},
            "head.normalization: 'group' has no effect on variant: sepc; expected one of: null, "
            "integrated",
        ),
        ({"head": HeadConfig(variant="dcn", shared=False)}, "head.shared: False has no effect"),
        (
            {"head": HeadConfig(variant="baseline", scale_kernel_size=1)},
            "head.scale_kernel_size: 1 has no effect",
        ),
        ({"type": "faster_rcnn", "nms_pre": 9}, "nms_pre: 9 has no effect on type: faster_rcnn"),
        (
            {"type": "faster_rcnn", "head": HeadConfig(variant="pconv")},
            "head.variant: 'pconv' has no effect on type: faster_rcnn",
        ),
    ],
)
def test_a_setting_that_is_wrong_or_without_effect_is_named(settings, message):
    with pytest.raises(ConfigError, match=f"my.yaml: .*{message}"):
        check_detector(DetectorConfig(**settings), "my.yaml")


def test_necks_and_anchors_of_a_config_are_built():
    config = tiny("retinanet", "baseline")
    config.necks = [{"type": "fpn", "num_levels": 4, "filters": 12, "min_level": 2}]
    config.options = {"anchors": {"scales": [4.0], "ratios": [1.0, 2.0]}}
    config.nms, config.max_detections = "class_agnostic", 7
    detector = build_detector(config, num_classes=3)
    assert detector.anchor_generator.strides == (4, 8, 16, 32)
    outputs = detector(tf.zeros([1, 64, 96, 3]))
    assert [m.shape[1:] for m in outputs["box"]] == [(16, 24, 8), (8, 12, 8), (4, 6, 8), (2, 3, 8)]
    assert detector.predict_step(batch())["boxes"].shape == (2, 7, 4)
    assert list(detector.parts) == ["backbone", "fpn", "towers", "head"]
    config.options["anchors"]["strides"] = [4, 8]
    with pytest.raises(ConfigError, match=r"one stride for each pyramid level; got 2 .* 4 levels"):
        build_detector(config, num_classes=3)
