"""iBN, PConv, SEPC and the backbones against the authors' outputs, gradients, running statistics.

The weights come in through `sepc_tf.checkpoints`, as a user's would.
"""

import sys

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.backbones import ResNet
from sepc_tf.checkpoints import import_state_dict, mmdet_names, named_variables
from sepc_tf.layers import IntegratedBatchNormalization, PConv
from sepc_tf.necks import SEPC

# Largest difference allowed, relative to the largest value of the array.
OPERATOR_TOLERANCE = 1e-5
NECK_TOLERANCE = 1e-4
# Norm of the difference of a gradient over its norm. Gradients jump where a ReLU or a sampling
# position crosses its kink, and of millions of units some are always within rounding of theirs:
# moving the inputs by 1e-7 (relative) moves our own gradients of four stacked modules by 3e-3
# (plain) and 1.3e-2 (deformable). Two right implementations cannot agree better than that.
GRADIENT_TOLERANCE = {"pconv": 3e-3, "sepc": 3e-2}

PCONV_CASES = [
    "pconv_plain_train",
    "pconv_plain_ibn_train",
    "pconv_plain_ibn_eval",
    "pconv_deform_train",
    "pconv_deform_ibn_train",
    "pconv_deform_ibn_eval",
]
SEPC_CASES = [
    f"sepc_pad{padding}_{variant}_{mode}"
    for padding in (0, 1)
    for variant in ("pconv", "ibn", "sepclite", "sepc")
    for mode in ("train", "eval")
    if (variant, mode) != ("pconv", "eval")
]


@pytest.fixture(scope="module")
def recipe(golden_dir):
    sys.path.insert(0, str(golden_dir))
    try:
        import recipe
    finally:
        sys.path.pop(0)
    return recipe


def to_nhwc(array):
    return tf.constant(array.transpose(0, 2, 3, 1))


def to_nchw(tensor):
    return np.asarray(tensor).transpose(0, 3, 1, 2)


def level_inputs(inputs, infix):
    """The arrays `<case>.<infix>.0`, `.1`, ... as NHWC tensors."""
    return [to_nhwc(value) for key, value in inputs.items() if f".{infix}." in key]


def run(layer, pyramid, cotangents, training):
    """Outputs of the layer, gradients with respect to the pyramid and to its variables by path."""
    variables = named_variables(layer)
    trainable = {path: v for path, v in variables.items() if v.trainable}

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            outputs = tf.nest.flatten(layer(pyramid, training=training))
            loss = tf.add_n([tf.reduce_sum(y * c) for y, c in zip(outputs, cotangents)] or [0.0])
        if not cotangents:
            return outputs, [], [], loss
        sources = [tf.convert_to_tensor(x) for x in pyramid], list(map(_value, trainable.values()))
        return outputs, *tape.gradient(loss, sources), loss

    outputs, grad_inputs, grad_variables, loss = step()
    return outputs, grad_inputs, dict(zip(trainable, grad_variables)), loss


def _value(variable):
    return variable.value if hasattr(variable, "path") else variable


def compare(case, got, tolerance):
    """Outputs and running statistics of the case, whole or in the stored part, and their sums."""
    assert set(got) == set(case.output_specs)
    for key, array in got.items():
        if ".grad" in key:
            continue
        difference = case.check(key, array)
        assert difference["rel_abssum"] < tolerance, key
        if "max_abs" in difference:
            assert difference["max_abs"] <= tolerance * difference["max_want"], key


def compare_gradients(recipe, case, got, tolerance):
    """Gradients, by the norm of the difference over the norm of the array.

    A bias in front of the integrated norm has gradient zero, so what is stored is rounding: hence
    the absolute term, a hundred thousandth of the largest gradient.
    """
    keys = [key for key in case.data if ".grad" in key]
    floor = 1e-5 * max(np.abs(case.data[key]).max() for key in keys)
    for key in keys:
        stored = recipe.subset(np.asarray(got[key]), case.output_specs[key]["slices"])
        assert np.isfinite(np.asarray(got[key])).all(), key
        difference = np.linalg.norm((stored - case.data[key]).astype(np.float64))
        allowed = tolerance * np.linalg.norm(case.data[key]) + floor * np.sqrt(stored.size)
        assert difference <= allowed, f"{key}: {difference}, allowed {allowed}"


def parameter_gradients(layer, gradients):
    """`out.grad.<their key>` -> gradient in their layout."""
    names = mmdet_names(layer)
    return {
        f"out.grad.{names[path][0]}": np.transpose(g, (3, 2, 0, 1))
        if names[path][1] == "hwio"
        else np.asarray(g)
        for path, g in gradients.items()
    }


def new_statistics(layer):
    names = mmdet_names(layer)
    return {
        f"out.new.{names[path][0]}": np.asarray(variable)
        for path, variable in named_variables(layer).items()
        if "/moving_" in path
    }


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_integrated_batch_norm(recipe, mode):
    case = recipe.load_case(f"ibn_{mode}")
    params = recipe.load_case("ibn_train").params()
    inputs = case.inputs()
    pyramid = [x * (1.0 + i) + 0.5 * i for i, x in enumerate(level_inputs(inputs, "x"))]
    norm = IntegratedBatchNormalization()
    norm.build([x.shape for x in pyramid])
    import_state_dict(norm, params)
    outputs, grad_inputs, grad_variables, _ = run(
        norm, pyramid, level_inputs(inputs, "cot"), mode == "train"
    )
    got = {f"out.y.{i}": to_nchw(y) for i, y in enumerate(outputs)}
    # The golden gradients are those of x before the levels are scaled by 1 + i.
    got |= {f"out.grad_x.{i}": to_nchw(g) * (1 + i) for i, g in enumerate(grad_inputs)}
    got["out.grad_weight"], got["out.grad_bias"] = grad_variables["gamma"], grad_variables["beta"]
    got["out.running_mean"], got["out.running_var"] = norm.moving_mean, norm.moving_variance
    compare(case, got, OPERATOR_TOLERANCE)
    compare_gradients(recipe, case, got, OPERATOR_TOLERANCE)


@pytest.mark.parametrize("name", PCONV_CASES)
def test_pconv(recipe, name):
    case = recipe.load_case(name)
    inputs = case.inputs()
    pyramid = level_inputs(inputs, "x")
    training = case.config["mode"] == "train"
    pconv = PConv(
        256,
        deformable=case.config["part_deform"],
        normalization="integrated" if case.config["iBN"] else None,
    )
    pconv.build([x.shape for x in pyramid])
    import_state_dict(pconv, case.params())
    cotangents = level_inputs(inputs, "cot")
    outputs, grad_inputs, grad_variables, loss = run(pconv, pyramid, cotangents, training)
    statistics = new_statistics(pconv)
    got = {f"out.y.{i}": to_nchw(y) for i, y in enumerate(outputs)}
    if training:
        got["out.loss"] = loss
        got |= {f"out.grad_x.{i}": to_nchw(g) for i, g in enumerate(grad_inputs)}
        got |= parameter_gradients(pconv, grad_variables)
        got |= statistics
        # With iBN no unit of these cases happens to cross a kink.
        tolerance = NECK_TOLERANCE if case.config["iBN"] else GRADIENT_TOLERANCE["pconv"]
        compare_gradients(recipe, case, got, tolerance)
    compare(case, got, NECK_TOLERANCE)


@pytest.mark.parametrize("name", SEPC_CASES)
def test_sepc(recipe, name):
    case = recipe.load_case(name)
    inputs = case.inputs()
    pyramid = level_inputs(inputs, "x")
    training = case.config["mode"] == "train"
    neck = SEPC(
        256,
        num_convs=case.config["Pconv_num"],
        deformable=case.config["pconv_deform"],
        extra_deformable=case.config["lcconv_deform"],
        normalization="integrated" if case.config["iBN"] else None,
        extra_padding="same" if case.config["lc_padding"] else "valid",
    )
    neck.build([x.shape for x in pyramid])
    import_state_dict(neck, case.params())
    cotangents = level_inputs(inputs, "cot.cls") + level_inputs(inputs, "cot.loc")
    outputs, grad_inputs, grad_variables, loss = run(neck, pyramid, cotangents, training)
    statistics = new_statistics(neck)
    levels = len(pyramid)
    got = {f"out.cls.{i}": to_nchw(y) for i, y in enumerate(outputs[:levels])}
    got |= {f"out.loc.{i}": to_nchw(y) for i, y in enumerate(outputs[levels:])}
    if training:
        got["out.loss"] = loss
        got |= {f"out.grad_x.{i}": to_nchw(g) for i, g in enumerate(grad_inputs)}
        got |= parameter_gradients(neck, grad_variables)
        got |= statistics
        compare_gradients(recipe, case, got, GRADIENT_TOLERANCE["sepc"])
    compare(case, got, NECK_TOLERANCE)


@pytest.mark.parametrize("name", ["r50", "r50_dcn_c3c5", "x101_64x4d"])
def test_backbone(recipe, name):
    case = recipe.load_case(f"backbone_{name}")
    config = case.config["backbone"]
    deformed = config.get("stage_with_dcn", [False] * 4)
    backbone = ResNet(
        config["depth"],
        groups=config.get("groups", 1),
        base_width=config.get("base_width", 64),
        deformable_stages=[level for level, dcn in zip((2, 3, 4, 5), deformed) if dcn],
    )
    image = to_nhwc(case.inputs()["img"])
    backbone.build(image.shape)
    import_state_dict(backbone, case.params())
    features = tf.function(backbone)(image, training=False)
    got = {f"out.c{i}": to_nchw(y) for i, y in enumerate(features, start=2)}
    compare(case, got, NECK_TOLERANCE)
