"""A layer from maps to pyramids against a case: outputs, gradients, running statistics.

Gradients through ReLUs and bilinear sampling jump where a pre-activation or a sampling position
crosses its kink, and of the millions of units of a neck some always lie within float32's rounding
of theirs: two right float32 implementations differ there by whole elements. In float64 none does.
So outputs, loss and running statistics are compared in float32 with the stored float32 ones, and
everything once more, gradients included, in float64 with the case's float64 reference. How far the
float32 gradients are from it is noted, not judged.

Of a case without a reference the gradients are compared in float32. Those that miss the tolerance
are computed again in float64, so that only the stored ones are rounded. Where the case says how far
its stored gradient is from float64 (`f64`), ours in float64 may be as far from it. What misses even
then must lie within `COARSE_TOLERANCE`; how many gradients were held to that only is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from sepc_tf import compat
from sepc_tf.checkpoints import import_state_dict, mmdet_names, named_variables
from sepc_tf.parity.comparing import FLOAT64_TOLERANCE, ZERO_TOLERANCE, Comparison
from sepc_tf.parity.golden import float64_reference, input_levels, nchw

# Twice the most by which kinks moved the authors' float32 gradients: 0.13 of the largest element
# (README.md of the golden folder, "Float64 references"). A missing term or a wrong sign is more.
COARSE_TOLERANCE = 0.26
# `f64` of a case is rounded to two digits.
ROUNDED_UP = 1.1


def check_module(
    case,
    comparison: Comparison,
    make_layer: Callable[..., keras.layers.Layer],
    cotangents: Mapping[str, Sequence[tf.Tensor]],
) -> None:
    """Compares a layer from maps to one or more pyramids; see the head of this file.

    Args:
        case: as in `check_case`; its inputs `x.i` are the maps.
        comparison: takes what is found.
        make_layer: function of a `dtype` that returns the layer, not built.
        cotangents: dict of the name of an output pyramid -> its cotangents (empty where the case
            has no gradients).
    """
    results = module_results(case, make_layer, cotangents, "float32")
    # The gradient of a bias that is 0 in exact arithmetic may be left out of a case.
    gradients = {key for key in results if key.startswith("out.grad") and key in case.output_specs}
    for key, array in results.items():
        if not key.startswith("out.grad"):
            unit = typical_loss(results, cotangents) if key == "out.loss" else 0.0
            comparison.output(key, array, unit)
    if not gradients:
        return
    reference = float64_reference(case)
    if reference is None:
        compare_float32_gradients(
            comparison,
            {key: results[key] for key in gradients},
            lambda: module_results(case, make_layer, cotangents, "float64"),
        )
        return
    exact = Comparison(reference, FLOAT64_TOLERANCE)
    for key, array in module_results(case, make_layer, cotangents, "float64").items():
        exact.output(key, array)
    comparison.include(exact.finish(), "float64")
    errors = {
        key: exact.output_error(key, results[key])
        for key in sorted(gradients)
        if not reference.output_specs[key].get("exact_zero")
    }
    worst = max(errors, key=errors.get)
    far = sum(not error <= comparison.tolerance for error in errors.values())
    comparison.notes.append(
        f"float32 gradients: {far} of {len(errors)} more than {comparison.tolerance:.0e} from "
        f"float64 (kinks), at most {errors[worst]:.1e}  {worst}"
    )


def compare_float32_gradients(
    comparison: Comparison,
    gradients: Mapping[str, np.ndarray],
    in_float64: Callable[[], Mapping[str, np.ndarray]],
) -> None:
    """Compares gradients with stored float32 ones where there is no float64 reference.

    Args:
        comparison: of the case.
        gradients: dict of key -> our float32 gradient.
        in_float64: function that computes the same in float64; called if a gradient misses.
    """

    def record_close_ones(keys, arrays, scales):
        errors = {
            key: comparison.output_error(key, arrays[key], scales.get(key, 0.0)) for key in keys
        }
        missed = {key: error for key, error in errors.items() if not error <= comparison.tolerance}
        for key, error in errors.items():
            if key not in missed:
                comparison.record(key, error)
        return missed

    missed = record_close_ones(gradients, gradients, {})
    if not missed:
        return
    exact = in_float64()
    # What is 0 in float64 is stored as the rounding of a sum over all pixels: in units of the
    # gradients of the other biases, which are such sums.
    biases = [np.abs(g).max() for key, g in exact.items() if np.ndim(g) == 1 and key in gradients]
    zeros = {key: max(biases) for key in missed if np.abs(exact[key]).max() <= ZERO_TOLERANCE}
    missed = record_close_ones(missed, exact, zeros)
    noise = {key: comparison.case.output_specs[key].get("f64", 0.0) for key in missed}
    rounded = {key for key, error in missed.items() if error <= ROUNDED_UP * noise[key]}
    if rounded:
        comparison.compared |= rounded
        comparison.notes.append(
            f"{len(rounded)} of {len(gradients)} gradients as far from ours in float64 as the "
            f"authors' own float64 is, at most {max(noise[key] for key in rounded):.1e}"
        )
    missed = {key: error for key, error in missed.items() if key not in rounded}
    if not missed:
        return
    comparison.compared |= missed.keys()
    comparison.coarse |= missed.keys()
    worst = max(missed, key=lambda key: np.nan_to_num(missed[key], nan=np.inf))
    comparison.notes.append(
        f"no float64 reference: {len(missed)} of {len(gradients)} gradients held to "
        f"{COARSE_TOLERANCE} only, worst {missed[worst]:.1e}  {worst}"
    )
    for key, error in missed.items():
        if not error <= COARSE_TOLERANCE:
            comparison.problems.append(f"{key}: relative error {error:.1e} in float64")


def typical_loss(results: Mapping[str, np.ndarray], cotangents) -> float:
    """What a sum of the loss's terms `y cotangent` with random signs would be: its float32 unit.

    The loss itself may cancel to any small number.
    """
    squares = [
        np.sum(np.square(results[f"out.{name}.{i}"] * nchw(cotangent), dtype=np.float64))
        for name, maps in cotangents.items()
        for i, cotangent in enumerate(maps)
    ]
    return float(np.sqrt(np.sum(squares)))


def module_results(
    case,
    make_layer: Callable[..., keras.layers.Layer],
    cotangents: Mapping[str, Sequence[tf.Tensor]],
    dtype: str,
) -> dict[str, np.ndarray]:
    """Everything a case stores of a layer, computed in `dtype`, under the golden names.

    Args:
        case, make_layer, cotangents: as in `check_module`.
        dtype: "float32" or "float64".

    Returns:
        dict of key -> array in the authors' layout: the outputs, with cotangents `out.loss` and the
        gradients of inputs and parameters, in training the new running statistics.
    """
    training = case.config.get("mode") == "train"
    levels, maps = zip(*input_levels(case, "x").items())
    maps = [tf.cast(x, dtype) for x in maps]
    layer = make_layer(dtype=dtype)
    layer.build([x.shape for x in maps])
    import_state_dict(layer, case.params())
    flat = [tf.cast(x, dtype) for pyramid in cotangents.values() for x in pyramid]
    result = differentiation(layer, flat, training)(maps)
    outputs = len(result["outputs"]) // len(cotangents)
    keys = [f"out.{name}.{i}" for name in cotangents for i in range(outputs)]
    results = {key: nchw(output) for key, output in zip(keys, result["outputs"], strict=True)}
    if not flat:
        return results
    results["out.loss"] = result["loss"]
    for level, gradient in zip(levels, result["input_gradients"]):
        results[f"out.grad_x.{level}"] = nchw(gradient)
    variables = named_variables(layer)
    for path, (key, layout) in mmdet_names(layer).items():
        if path in result["gradients"]:
            gradient = result["gradients"][path]
            oihw = np.transpose(gradient, (3, 2, 0, 1)) if layout == "hwio" else gradient
            results[f"out.grad.{key}"] = oihw
        elif training:
            results[f"out.new.{key}"] = variables[path].numpy()
    return results


def differentiation(
    layer: keras.layers.Layer, cotangents: Sequence[tf.Tensor], training: bool
) -> Callable[[Sequence[tf.Tensor]], dict]:
    """A function that runs a layer and differentiates `sum_k sum(y_k cotangent_k)`.

    Args:
        layer: a built layer from a pyramid to one or more pyramids.
        cotangents: one for each output map in order; none: nothing is differentiated.
        training: passed to the layer.

    Returns:
        function of a pyramid; gives a dict of `outputs` (flat list), `loss`, `input_gradients`
        (list) and `gradients` (path of a variable -> array), the last three only where there are
        cotangents.
    """
    trainable = {path: v for path, v in named_variables(layer).items() if v.trainable}

    @tf.function(autograph=False)
    def step(pyramid):
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            outputs = tf.nest.flatten(layer(pyramid, training=training))
            if not cotangents:
                return {"outputs": outputs}
            loss = tf.add_n([tf.reduce_sum(y * c) for y, c in zip(outputs, cotangents)])
        sources = pyramid, [compat.variable_value(v) for v in trainable.values()]
        inputs, variables = tape.gradient(loss, sources)
        return {
            "outputs": outputs,
            "loss": loss,
            "input_gradients": inputs,
            "gradients": dict(zip(trainable, variables)),
        }

    return lambda pyramid: tf.nest.map_structure(lambda x: x.numpy(), step(pyramid))
