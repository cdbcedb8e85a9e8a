"""The authors' numbers: every case of a golden folder, computed by this package and compared.

A golden folder holds outputs of the authors' code, and a `recipe.py` that makes the parameters and
inputs they were computed from again. Weights enter through `import_state_dict`, as a user's do.
What a case asks for, and every size in it, is read from the case itself.

Tolerances are relative to the largest value of the array compared, `OPERATOR_TOLERANCE` for single
operators, losses and decoding, `NETWORK_TOLERANCE` for pyramid convolutions, necks, backbones,
detectors and FreeAnchor's loss. Every stored output must be compared.

Gradients through ReLUs and bilinear sampling jump where a pre-activation or a sampling position
crosses its kink, and of the millions of units of a neck some always lie within rounding of theirs:
two right float32 implementations differ there by whole elements. So a gradient that misses the
tolerance in float32 is computed again in float64, which has the rounding of the stored one only.
What misses it even then is held against what rounding does: it may be off, in norm, by no more than
the largest change of any part (as large as the stored one) of the float64 gradients when the inputs
move by `ROUNDING`.
"""

import fnmatch
import functools
import importlib.util
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf

from sepc_tf.checkpoints import import_state_dict, mmdet_names, named_variables
from sepc_tf.config import BackboneConfig, DetectorConfig, HeadConfig
from sepc_tf.detectors.dense import level_sizes
from sepc_tf.layers import IntegratedBatchNormalization, PConv
from sepc_tf.necks import SEPC
from sepc_tf.necks.sepc import VARIANTS
from sepc_tf.ops.deform_conv2d import deform_conv2d
from sepc_tf.ops.matching import IGNORED
from sepc_tf.ops.nms import top_candidates
from sepc_tf.zoo import build_backbone, build_detector

OPERATOR_TOLERANCE = 1e-5
NETWORK_TOLERANCE = 1e-4
# Relative change of the inputs for the last paragraph above. It moves a neck's outputs about three
# times as far as float32 moved the stored ones: the kinks that these crossed are among those hit.
ROUNDING = 1e-6
ROUNDING_RUNS = 3

# A bias added to all levels just before one norm over all levels cannot change anything: its
# gradient is the rounding of a sum whose terms are as large as those of the norm's own bias.
NORM_AFTER_BIAS = {"Pconv.1.bias": "bn.bias", "cconv.bias": "cbn.bias", "lconv.bias": "lbn.bias"}


@dataclass
class Comparison:
    """What became of one case.

    Attributes:
        case: the golden case.
        tolerance: largest relative error allowed.
        error: the worst relative error of the outputs held to `tolerance`.
        worst: the output it belongs to.
        notes: what else is worth a line.
        problems: one line for everything wrong; empty if the case passed.
    """

    case: object
    tolerance: float
    error: float = 0.0
    worst: str = ""
    notes: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    compared: set = field(default_factory=set)

    @property
    def passed(self):
        """Whether every output of the case was compared and found right."""
        return not self.problems

    def __str__(self):
        line = (
            f"{'pass' if self.passed else 'FAIL'}  {self.case.name:28} worst relative error "
            f"{self.error:.1e} (allowed {self.tolerance:.0e})  {self.worst}"
        )
        problems = self.problems[:10]
        if len(self.problems) > len(problems):
            problems.append(f"... {len(self.problems) - len(problems)} more")
        return "\n      ".join([line, *self.notes, *problems])

    def record(self, key, error):
        """Holds one relative error against the tolerance; NaN counts as wrong."""
        self.compared.add(key)
        if not error <= self.error:
            self.error, self.worst = float(error), key
        if not error <= self.tolerance:
            self.problems.append(f"{key}: relative error {error:.1e}")

    def close(self, key, got, want=None, scale=0.0):
        """Compares with a whole stored array, in units of its largest value (or of `scale`)."""
        self.record(key, relative_error(got, self.case.data[key] if want is None else want, scale))

    def equal(self, key, got, want=None):
        """Compares integers or flags, which must all be equal."""
        self.compared.add(key)
        got, want = np.asarray(got), np.asarray(self.case.data[key] if want is None else want)
        if got.shape != want.shape:
            self.problems.append(f"{key}: shape {got.shape}, expected {want.shape}")
        elif (got != want).any():
            self.problems.append(f"{key}: {(got != want).sum()} of {got.size} differ")

    def output(self, key, got):
        """Compares a whole array with what is stored of it: a part, and statistics of all of it."""
        self.record(key, self.output_error(key, got))

    def output_error(self, key, got, scale=0.0):
        """The worst relative error of the stored part and of the statistics of the whole."""
        got, spec = np.asarray(got, np.float64), self.case.output_specs[key]
        if got.shape != tuple(spec["shape"]):
            self.problems.append(f"{key}: shape {got.shape}, expected {tuple(spec['shape'])}")
            return np.inf
        typical = max(np.hypot(spec["mean"], spec["std"]), scale, 1e-30)
        errors = [
            abs(got.mean() - spec["mean"]) / typical,
            abs(got.std() - spec["std"]) / typical,
            abs(np.abs(got).sum() - spec["abssum"]) / (typical * max(got.size, 1)),
        ]
        if key in self.case.data:
            errors.append(relative_error(self.stored(key, got), self.case.data[key], scale))
        return np.max(errors)  # NaN if one is

    def stored(self, key, array):
        """The part of a whole array that is stored of output `key`."""
        slices = self.case.output_specs[key]["slices"]
        return array if slices is None else array[tuple(slice(*s) for s in slices)]

    def parts_like_stored(self, key, count=8):
        """Index tuples of parts of output `key` that are as large as the stored one."""
        slices = self.case.output_specs[key]["slices"] or []
        for i in range(count):
            yield tuple(
                slice(((start or 0) + i * max(step // count, 1)) % step, stop, step)
                if stop is None
                else slice(start, stop, step)
                for start, stop, step in slices
            )

    def finish(self):
        """Notes every output of the case that nothing was compared with."""
        missing = [key for key in self.case.output_specs if key not in self.compared]
        self.problems += [f"{key}: not compared" for key in missing]
        return self


def relative_error(got, want, scale=0.0):
    """Largest difference over the largest absolute value of `want` (or over `scale`, if larger)."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise ValueError(f"shape {got.shape}, expected {want.shape}")
    if not want.size:
        return 0.0
    return np.abs(got - want).max() / max(np.abs(want).max(), scale, 1e-30)


# ------------------------------------------------------------------------------- running cases


def load_cases(folder, pattern="*"):
    """The cases of a golden folder whose names match `pattern`, as objects of its `recipe.py`.

    Args:
        folder: a folder with `manifest.json`, `recipe.py` and the `.npz` files.
        pattern: as in `fnmatch`, e.g. `"detector_*"`.

    Raises:
        FileNotFoundError: the folder is none, or no case matches.
    """
    folder = Path(folder)
    for name in ("manifest.json", "recipe.py"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no golden folder: it has no {name}")
    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    manifest = recipe.manifest(str(folder))
    names = fnmatch.filter(manifest["cases"], pattern)
    if not names:
        raise FileNotFoundError(f"no case of {folder} matches {pattern!r}")
    return [recipe.Case(manifest, name, str(folder)) for name in names]


def check_case(case):
    """Computes a case and compares every output.

    Args:
        case: one of `load_cases`.

    Returns:
        `Comparison`; an error on the way (a missing file, another shape) is one of its problems.

    Example:
        >>> print(check_case(load_cases("golden", "retina_loss")[0]))
        pass  retina_loss                  worst relative error 5.6e-07 (allowed 1e-05)  ...
    """
    check, tolerance = check_of(case.config)
    comparison = Comparison(case, tolerance)
    try:
        check(case, comparison)
    except Exception as error:  # one broken case must not hide the others
        where = traceback.extract_tb(error.__traceback__)[-1]
        comparison.problems.append(
            f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        )
    return comparison.finish()


def check_of(config):
    """Which function checks a case of this config, and to which tolerance."""
    for key, check, tolerance in (
        ("deformable_groups", check_deform_conv, OPERATOR_TOLERANCE),
        ("level_affine", check_integrated_norm, OPERATOR_TOLERANCE),
        ("part_deform", check_pconv, NETWORK_TOLERANCE),
        ("pconv_deform", check_sepc, NETWORK_TOLERANCE),
        ("model", check_detector, NETWORK_TOLERANCE),
        ("backbone", check_backbone, NETWORK_TOLERANCE),
        ("test_cfg", check_decoding, OPERATOR_TOLERANCE),
    ):
        if key in config:
            return check, tolerance
    # FreeAnchor divides by an object's best IoU minus 0.6, which may be as small as it likes.
    return {
        "fsaf": (check_fsaf, OPERATOR_TOLERANCE),
        "free_anchor": (check_free_anchor, NETWORK_TOLERANCE),
        "retinanet": (check_retinanet, OPERATOR_TOLERANCE),
    }[detector_type(config["head"])]


def nhwc(array):
    """An NCHW array as an NHWC tensor."""
    return tf.constant(np.ascontiguousarray(array.transpose(0, 2, 3, 1)))


def nchw(tensor):
    """An NHWC tensor as an NCHW array."""
    return np.asarray(tensor).transpose(0, 3, 1, 2)


def level_inputs(case, infix):
    """The inputs `<prefix>.<infix>.0`, `.1`, ... as NHWC tensors, finest level first."""
    levels = {}
    for key, value in case.inputs().items():
        head, _, level = key.rpartition(".")
        if level.isdigit() and head.endswith(f".{infix}"):
            levels[int(level)] = nhwc(value)
    return [levels[i] for i in sorted(levels)]


# ----------------------------------------------------------------- operators, norms, necks


def check_deform_conv(case, comparison, implementation="auto", compiled=None):
    """Deformable convolution: forward and all three gradients.

    Args:
        case, comparison: as in `check_case`.
        implementation: of `deform_conv2d`.
        compiled: None runs op by op, False as a graph, True compiled by XLA.
    """
    inputs = {key.rpartition(".")[2]: value for key, value in case.inputs().items()}
    config = case.config
    x, offset, cotangent = (nhwc(inputs[key]) for key in ("x", "offset", "cot"))
    kernel = tf.constant(inputs["weight"].transpose(2, 3, 1, 0))

    def run(x, offset, kernel, cotangent):
        with tf.GradientTape() as tape:
            tape.watch([x, offset, kernel])
            y = deform_conv2d(
                x,
                offset,
                kernel,
                strides=config["stride"],
                padding=config["padding"],
                dilations=config["dilation"],
                groups=config["groups"],
                offset_groups=config["deformable_groups"],
                implementation=implementation,
            )
        return y, *tape.gradient(y, [x, offset, kernel], cotangent)

    if compiled is not None:
        run = tf.function(run, jit_compile=compiled)
    y, grad_x, grad_offset, grad_kernel = run(x, offset, kernel, cotangent)
    comparison.output("out.y", nchw(y))
    comparison.output("out.grad_x", nchw(grad_x))
    comparison.output("out.grad_offset", nchw(grad_offset))
    comparison.output("out.grad_weight", grad_kernel.numpy().transpose(3, 2, 0, 1))


def check_integrated_norm(case, comparison):
    """iBN over the levels: outputs, gradients, running statistics."""
    # Level i enters as x (1 + i) + 0.5 i; the stored gradients are those of x.
    pyramid = [x * (1.0 + i) + 0.5 * i for i, x in enumerate(level_inputs(case, "x"))]
    norm = IntegratedBatchNormalization(
        momentum=1 - case.config["momentum"], epsilon=case.config["eps"]
    )
    norm.build([x.shape for x in pyramid])
    import_state_dict(norm, case.params())
    training = case.config["mode"] == "train"
    result = differentiation(norm, level_inputs(case, "cot"), training)(pyramid)
    for i, (y, gradient) in enumerate(zip(result["outputs"], result["input_gradients"])):
        comparison.output(f"out.y.{i}", nchw(y))
        comparison.output(f"out.grad_x.{i}", nchw(gradient) * (1 + i))
    comparison.output("out.grad_weight", result["gradients"]["gamma"])
    comparison.output("out.grad_bias", result["gradients"]["beta"])
    comparison.output("out.running_mean", norm.moving_mean)
    comparison.output("out.running_var", norm.moving_variance)


def check_pconv(case, comparison):
    """One pyramid convolution: outputs; in training gradients and running statistics."""
    params = case.params()
    make_pconv = functools.partial(
        PConv,
        params["Pconv.1.weight"].shape[0],
        deformable=case.config["part_deform"],
        normalization="integrated" if case.config["iBN"] else None,
    )
    outputs = {"y": level_inputs(case, "cot")}
    check_module(case, comparison, make_pconv, params, outputs)


def check_sepc(case, comparison):
    """The SEPC neck: outputs; in training gradients and running statistics."""
    params = case.params()
    make_neck = functools.partial(
        SEPC,
        params["cconv.weight"].shape[0],
        num_convs=case.config["Pconv_num"],
        deformable=case.config["pconv_deform"],
        extra_deformable=case.config["lcconv_deform"],
        normalization="integrated" if case.config["iBN"] else None,
        extra_padding="same" if case.config["lc_padding"] else "valid",
    )
    outputs = {"cls": level_inputs(case, "cot.cls"), "loc": level_inputs(case, "cot.loc")}
    check_module(case, comparison, make_neck, params, outputs)


def check_module(case, comparison, make_layer, params, cotangents):
    """Compares a layer from a pyramid to one or more pyramids.

    Args:
        case, comparison: as in `check_case`.
        make_layer: function of a `dtype` that returns a `PConv` or `SEPC`.
        params: state dict of the layer.
        cotangents: dict of the name of an output pyramid -> its cotangents (empty in evaluation).
    """
    training = case.config["mode"] == "train"
    pyramid = level_inputs(case, "x")

    def layer_and_run(dtype):
        layer = make_layer(dtype=dtype)
        layer.build([x.shape for x in pyramid])
        import_state_dict(layer, params)
        flat = [tf.cast(x, dtype) for maps in cotangents.values() for x in maps]
        run = differentiation(layer, flat, training)
        return layer, lambda maps: run([tf.cast(x, dtype) for x in maps])

    layer, run = layer_and_run("float32")
    result = run(pyramid)
    names = [f"out.{name}.{i}" for name in cotangents for i in range(len(pyramid))]
    for name, output in zip(names, result["outputs"]):
        comparison.output(name, nchw(output))
    if not training:
        return
    comparison.output("out.loss", result["loss"])
    for path, (key, _) in mmdet_names(layer).items():
        if "/moving_" in path:
            comparison.output(f"out.new.{key}", named_variables(layer)[path])

    def in_float64():
        exact, run_exactly = layer_and_run("float64")

        def gradients(seed=None):
            rng = np.random.default_rng(seed)
            amount = 0.0 if seed is None else ROUNDING
            moved = [x.numpy() * (1 + amount * rng.standard_normal(x.shape)) for x in pyramid]
            return gradients_by_key(exact, run_exactly(moved))

        return gradients

    compare_gradients(case, comparison, gradients_by_key(layer, result), in_float64)


def differentiation(layer, cotangents, training):
    """A function that runs a layer and differentiates `sum_k sum(y_k cotangent_k)`.

    Returns:
        function of a pyramid; gives a dict of `outputs` (flat list), `loss`, `input_gradients`
        (list) and `gradients` (path of a variable -> array), the last three only where there are
        cotangents.
    """
    trainable = {path: v for path, v in named_variables(layer).items() if v.trainable}

    @tf.function
    def step(pyramid):
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            outputs = tf.nest.flatten(layer(pyramid, training=training))
            if not cotangents:
                return {"outputs": outputs}
            loss = tf.add_n([tf.reduce_sum(y * c) for y, c in zip(outputs, cotangents)])
        sources = pyramid, [_tensor_of(v) for v in trainable.values()]
        inputs, variables = tape.gradient(loss, sources)
        return {
            "outputs": outputs,
            "loss": loss,
            "input_gradients": inputs,
            "gradients": dict(zip(trainable, variables)),
        }

    return lambda pyramid: tf.nest.map_structure(lambda x: x.numpy(), step(pyramid))


def _tensor_of(variable):
    """The TensorFlow variable of a Keras one (Keras 3 wraps it)."""
    return variable.value if hasattr(variable, "path") else variable


def gradients_by_key(layer, result):
    """Gradients of inputs and parameters under the golden names, in the authors' layouts."""
    gradients = {f"out.grad_x.{i}": nchw(g) for i, g in enumerate(result["input_gradients"])}
    names = mmdet_names(layer)
    for path, gradient in result["gradients"].items():
        key, layout = names[path]
        oihw = np.transpose(gradient, (3, 2, 0, 1)) if layout == "hwio" else gradient
        gradients[f"out.grad.{key}"] = oihw
    return gradients


def compare_gradients(case, comparison, gradients, in_float64):
    """Compares gradients: in float32, else in float64, else against what rounding does there.

    Args:
        case, comparison: as in `check_case`.
        gradients: dict of a golden name -> our float32 gradient.
        in_float64: function that returns a function of a seed; that one gives the float64 gradients
            of inputs moved by `ROUNDING`, and without a seed those of the inputs themselves.
    """
    floors = {}
    for key in gradients:
        for bias, norm in NORM_AFTER_BIAS.items():
            if key.endswith(f".{bias}"):
                norm = key.removesuffix(bias) + norm
                floors[key] = np.abs(case.data[norm]).max() if norm in case.data else 0.0

    def record_close_ones(keys, gradients):
        """Records what is within the tolerance and returns the errors of the rest."""
        errors = {
            key: comparison.output_error(key, gradients[key], floors.get(key, 0.0)) for key in keys
        }
        missed = {key: e for key, e in errors.items() if not e <= comparison.tolerance}
        for key in errors.keys() - missed.keys():
            comparison.record(key, errors[key])
        return missed

    missed = record_close_ones(gradients, gradients)
    if not missed:
        return
    jumping = len(missed)
    gradients_of = in_float64()
    exact = gradients_of()
    missed = record_close_ones(missed, exact)
    note = f"{jumping} of {len(gradients)} gradients jump at kinks in float32"
    if not missed:
        comparison.notes.append(f"{note}; in float64 all are within the tolerance")
        return

    def in_norm(got, want, floor):
        """Norm of the difference over the norm, both as of a typical element."""
        typical = max(np.sqrt(np.mean(np.square(want, dtype=np.float64))), floor, 1e-30)
        return np.sqrt(np.mean(np.square(got - want, dtype=np.float64))) / typical

    allowed = 0.0
    for seed in range(ROUNDING_RUNS):
        others = gradients_of(seed)
        for key, gradient in exact.items():
            for part in comparison.parts_like_stored(key):
                change = in_norm(others[key][part], gradient[part], floors.get(key, 0.0))
                allowed = max(allowed, change)
    worst, worst_key = 0.0, ""
    for key in missed:
        comparison.compared.add(key)
        error = in_norm(case.data[key], comparison.stored(key, exact[key]), floors.get(key, 0.0))
        if not error <= worst:
            worst, worst_key = error, key
        if not error <= allowed:
            comparison.problems.append(
                f"{key}: relative error {missed[key]:.1e}; in norm {error:.1e}, more than the "
                f"{allowed:.1e} by which rounding moves the gradients"
            )
    comparison.notes.append(
        f"{note}, {len(missed)} also in float64: off by {worst:.1e} in norm ({worst_key}), "
        f"rounding moves them by {allowed:.1e}"
    )


# -------------------------------------------------------------------- networks


def detector_type(head):
    """Our name of the detector that an mmdetection `bbox_head` belongs to."""
    if "FreeAnchor" in head["type"]:
        return "free_anchor"
    return "fsaf" if "FSAF" in head["type"] else "retinanet"


def backbone_config(backbone):
    """`BackboneConfig` of an mmdetection `backbone`."""
    deformed = backbone.get("stage_with_dcn", ())
    return BackboneConfig(
        depth=backbone["depth"],
        groups=backbone.get("groups", 1),
        base_width=backbone.get("base_width", 64),
        deformable_stages=[stage for stage, dcn in enumerate(deformed, start=2) if dcn],
        frozen_stages=backbone.get("frozen_stages", -1),
    )


def detector_config(model, lc_padding):
    """`DetectorConfig` of an mmdetection `model`.

    Args:
        model: dict with `backbone`, `neck` (an FPN, or the list of an FPN and a SEPC), `bbox_head`.
        lc_padding: padding of the two extra convolutions of SEPC: 0 in the authors' code.
    """
    neck, head = model["neck"], model["bbox_head"]
    if isinstance(neck, dict):
        options = {"variant": "baseline", "num_convs": head["stacked_convs"]}
        filters = neck["out_channels"]
    else:
        fpn, sepc = neck
        wanted = {
            "deformable": sepc["pconv_deform"],
            "extra_deformable": sepc["lcconv_deform"],
            "normalization": "integrated" if sepc["iBN"] else None,
        }
        variant = next(name for name, options in VARIANTS.items() if options == wanted)
        options = {"variant": variant, "num_convs": sepc["Pconv_num"]}
        filters = fpn["out_channels"]
    return DetectorConfig(
        type=detector_type(head),
        convention="modern" if lc_padding else "mmdet1",
        backbone=backbone_config(model["backbone"]),
        head=HeadConfig(filters=filters, **options),
    )


def check_backbone(case, comparison):
    """C2 to C5 of a backbone in evaluation."""
    image = nhwc(case.inputs()["img"])
    backbone = build_backbone(backbone_config(case.config["backbone"]))
    backbone.build((None, None, None, 3))
    import_state_dict(backbone, case.params())
    features = tf.function(backbone)(image, training=False)
    for level, feature in enumerate(features, start=2):
        comparison.output(f"out.c{level}", nchw(feature))


def check_detector(case, comparison):
    """Raw outputs of a whole detector in evaluation; where stored, of its backbone and FPN."""
    model = case.config["model"]
    detector = build_detector(
        detector_config(model, case.config["lc_padding"]),
        num_classes=model["bbox_head"]["num_classes"] - 1,
    )
    import_state_dict(detector, case.params())

    @tf.function
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


# -------------------------------------------------------------------- targets, losses, decoding


def head_detector(case):
    """A detector of the case's head and classes, in the authors' convention; tiny elsewhere."""
    config = DetectorConfig(
        type=detector_type(case.config["head"]),
        convention="mmdet1",
        backbone=BackboneConfig(depth=18, width=8),
        head=HeadConfig(variant="baseline", filters=8, num_convs=1),
    )
    return build_detector(config, num_classes=case.config["num_classes_with_background"] - 1)


def raw_outputs(case):
    """Class and box maps as the last convolutions gave them: two lists of NHWC tensors."""
    return level_inputs(case, "cls"), level_inputs(case, "reg")


def activated(detector, cls, reg):
    """Raw maps as the detector's outputs."""
    box = [tf.nn.relu(x) for x in reg] if detector.head.box_activation else reg
    return {"classification": cls, "box": box}


def padded_batch(case):
    """The case's objects as a batch: labels from 0, padded with -1."""
    images = range(len(case.config["img_metas"]))
    boxes = [case.data[f"in.gt_bboxes.{i}"] for i in images]
    labels = [case.data[f"in.gt_labels.{i}"] - 1 for i in images]
    most = max(map(len, boxes)) + 2

    def padded(array):
        widths = [(0, most - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, widths, constant_values=-1)

    return {
        "boxes": tf.constant(np.stack([padded(b) for b in boxes]), tf.float32),
        "labels": tf.constant(np.stack([padded(x) for x in labels]), tf.int32),
        "image_sizes": tf.constant([m["img_shape"][:2] for m in case.config["img_metas"]]),
    }


def split_levels(array, outputs, anchors_per_cell, axis=1):
    """Rows of all levels, in one array, as a list of levels."""
    rows = [h * w * anchors_per_cell for h, w in level_sizes(outputs)]
    return np.split(np.asarray(array), np.cumsum(rows)[:-1], axis=axis)


def compare_losses(case, comparison, detector, batch, names):
    """The losses, their sum, and their gradients with respect to the raw maps.

    Args:
        names: dict of one of our losses -> their name; where they store one value per level, the
            sum of the levels is compared.
    """
    cls, reg = raw_outputs(case)

    @tf.function
    def run(cls, reg):
        with tf.GradientTape() as tape:
            tape.watch([cls, reg])
            losses = detector.compute_losses(activated(detector, cls, reg), batch)
            total = tf.add_n(list(losses.values()))
        return losses, total, tape.gradient(total, [cls, reg])

    losses, total, gradients = run(cls, reg)
    comparison.output("out.loss_total", total)
    for name, theirs in names.items():
        keys = [k for k in case.output_specs if k == f"out.{theirs}" or _is_level(k, theirs)]
        error = relative_error(losses[name], np.sum([case.data[key] for key in keys]))
        for key in keys:
            comparison.record(key, error)
    for kind, maps in zip(("cls", "reg"), gradients):
        # Coarse levels may hold next to nothing: all levels in units of the largest.
        largest = max(np.abs(case.data[f"out.grad_{kind}.{i}"]).max() for i in range(len(maps)))
        for i, level in enumerate(maps):
            comparison.close(f"out.grad_{kind}.{i}", nchw(level), scale=largest)


def _is_level(key, name):
    head, _, level = key.rpartition(".")
    return head == f"out.{name}" and level.isdigit()


def compare_targets(case, comparison, detector, outputs, targets):
    """Anchors, labels, weights and encoded boxes of RetinaNet and FSAF, level by level."""
    matches = targets["matches"].numpy()
    matched = matches >= 0
    arrays = {
        "labels": targets["classes"].numpy() + 1,
        "label_weights": matches != IGNORED,
        "bbox_targets": np.where(matched[..., None], targets["codes"], 0.0),
    }
    levels = {
        name: split_levels(array, outputs, detector.anchor_generator.anchors_per_cell)
        for name, array in arrays.items()
    }
    for i, anchors in enumerate(detector.anchors(outputs)):
        comparison.close(f"out.anchors.{i}", anchors)
        comparison.equal(f"out.labels.{i}", levels["labels"][i])
        comparison.equal(f"out.label_weights.{i}", levels["label_weights"][i])
        # Where nothing is matched the authors' code leaves zeros or junk; neither is used.
        used = levels["labels"][i] > 0
        comparison.close(
            f"out.bbox_targets.{i}",
            levels["bbox_targets"][i][used],
            case.data[f"out.bbox_targets.{i}"][used],
        )
    return matched, matches


def check_retinanet(case, comparison):
    """RetinaNet: anchors, targets, losses, gradients."""
    detector, batch = head_detector(case), padded_batch(case)
    outputs = activated(detector, *raw_outputs(case))
    targets = detector.label_anchors(outputs, batch)
    matched, matches = compare_targets(case, comparison, detector, outputs, targets)
    valid = detector.anchor_generator.valid(level_sizes(outputs), batch["image_sizes"])
    anchors = detector.anchor_generator.anchors_per_cell
    for i, flags in enumerate(split_levels(valid, outputs, anchors)):
        comparison.equal(f"out.valid.{i}", flags)
    for i, flags in enumerate(split_levels(matched, outputs, anchors)):
        comparison.equal(f"out.bbox_weights.{i}", np.repeat(flags[..., None], 4, axis=-1))
    at_least_one = [np.maximum(flags.sum(axis=1), 1).sum() for flags in (matched, matches == -1)]
    comparison.equal("out.num_total_pos", at_least_one[0])
    comparison.equal("out.num_total_neg", at_least_one[1])
    names = {"classification": "loss_cls", "box": "loss_bbox"}
    compare_losses(case, comparison, detector, batch, names)


def check_fsaf(case, comparison):
    """FSAF: targets, losses of every cell, the choice of levels, losses, gradients."""
    detector, batch = head_detector(case), padded_batch(case)
    outputs = activated(detector, *raw_outputs(case))
    targets = detector.label_anchors(outputs, batch)
    matched, matches = compare_targets(case, comparison, detector, outputs, targets)
    comparison.equal("out.num_total_pos_before_level_choice", matched.sum())

    # Objects are numbered image by image.
    counts = np.sum(batch["labels"].numpy() >= 0, axis=1)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])[:, None]
    focal, iou_loss = (x.numpy() for x in detector.cell_losses(outputs, targets))
    num_boxes = batch["boxes"].shape[1]
    selected = detector.select_levels(
        outputs, targets, tf.constant(focal), tf.constant(iou_loss), num_boxes
    )
    arrays = {
        "assigned": np.where(matched, matches, -1),
        "assigned_global": np.where(matched, matches + first, -1),
        "keep": selected["kept"].numpy(),
        "cls_elem": np.where((matches != IGNORED)[..., None], focal, 0.0),
        "reg_elem": np.where(matched, iou_loss, 0.0),
    }
    for name, array in arrays.items():
        compare = comparison.close if name.endswith("elem") else comparison.equal
        for i, level in enumerate(split_levels(array, outputs, 1)):
            key = f"out.{name}.{i}"
            compare(key, level.reshape(case.data[key].shape))
    real = batch["labels"].numpy() >= 0
    comparison.close("out.loss_levels", selected["mean_losses"].numpy()[real].T)
    comparison.equal("out.min_levels", selected["levels"].numpy()[real])

    kept = arrays["keep"]
    comparison.close("out.num_pos_per_image", kept.sum() / len(kept))
    logits = np.concatenate([x.numpy() for x in detector.flatten_outputs(outputs)[0]], axis=1)
    right = logits[kept].argmax(axis=-1) == targets["classes"].numpy()[kept]
    comparison.close("out.accuracy", right.sum() / (kept.sum() + 1e-3))
    names = {"classification": "loss_cls", "box": "loss_bbox"}
    compare_losses(case, comparison, detector, batch, names)


def check_free_anchor(case, comparison):
    """FreeAnchor: bags, positive losses, coverage, losses, gradients."""
    detector, batch = head_detector(case), padded_batch(case)
    outputs = activated(detector, *raw_outputs(case))
    anchors = tf.concat(detector.anchors(outputs), axis=0)
    logits, codes = (tf.concat(levels, axis=1) for levels in detector.flatten_outputs(outputs))
    boxes, labels = batch["boxes"], batch["labels"]
    bags = detector.select_bags(anchors, boxes)
    positive = detector.bag_losses(anchors, bags, logits, codes, boxes, labels).numpy()
    for i in range(len(positive)):
        count = len(case.data[f"in.gt_labels.{i}"])
        comparison.equal(f"out.matched_sorted.{i}", np.sort(bags[i, :count], axis=-1))
        comparison.close(f"out.positive_bag_per_gt.{i}", positive[i, :count])
    comparison.close("out.box_prob", detector.coverage(anchors, codes, boxes, labels))
    names = {"positive_bag": "positive_bag_loss", "negative_bag": "negative_bag_loss"}
    compare_losses(case, comparison, detector, batch, names)


def check_decoding(case, comparison):
    """Candidates before NMS, compared anchor by anchor, and detections after it."""
    detector = head_detector(case)
    settings, meta = case.config["test_cfg"], case.config["img_meta"]
    detector.nms_pre = settings["nms_pre"]
    detector.score_threshold = settings["score_thr"]
    detector.nms_iou = settings["nms"]["iou_thr"]
    detector.max_detections = settings["max_per_img"]
    outputs = activated(detector, *raw_outputs(case))
    image_sizes = tf.constant([meta["img_shape"][:2]])

    # Within a level ours come in order of score, theirs so or in order of anchors.
    boxes, scores = (x[0].numpy() for x in detector.scored_boxes(outputs, image_sizes))
    ours, theirs, selections, start = [], [], 0, 0
    for logits in detector.flatten_outputs(outputs)[0]:
        rows = top_candidates(tf.sigmoid(logits), detector.nms_pre)[0].numpy()
        their_rows = np.sort(rows)
        if logits.shape[1] > detector.nms_pre:
            their_rows = case.data[f"out.topk_inds.{selections}"]
            comparison.equal(f"out.topk_inds.{selections}", np.sort(rows), np.sort(their_rows))
            selections += 1
        ours.append(start + np.argsort(rows))
        theirs.append(start + np.argsort(their_rows))
        start += len(rows)
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    want = {key: case.data[f"out.{key}"][theirs] for key in ("boxes", "boxes_rescaled", "scores")}
    with_background = np.pad(scores, ((0, 0), (1, 0)))
    comparison.close("out.boxes", boxes[ours], want["boxes"])
    comparison.close(
        "out.boxes_rescaled", boxes[ours] / meta["scale_factor"], want["boxes_rescaled"]
    )
    comparison.close("out.scores", with_background[ours], want["scores"])

    got = {key: x[0].numpy() for key, x in detector.decode(outputs, image_sizes).items()}
    count = got["num_detections"]
    order = np.argsort(-case.data["out.det_bboxes"][:, 4], kind="stable")
    detections = np.concatenate([got["boxes"], got["scores"][:, None]], axis=1)[:count]
    comparison.close("out.det_bboxes", detections[:, :4], case.data["out.det_bboxes"][order, :4])
    comparison.close("out.det_bboxes", detections[:, 4], case.data["out.det_bboxes"][order, 4])
    comparison.equal("out.det_labels", got["classes"][:count], case.data["out.det_labels"][order])
