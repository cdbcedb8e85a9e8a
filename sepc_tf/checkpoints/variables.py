"""The variables of a layer tree under names that are the same on both Keras stacks."""

import numpy as np

from sepc_tf.errors import CheckpointError


def named_variables(layer):
    """Returns every variable below `layer`, keyed by its path of layer names.

    A key is `"<child name>/<grandchild name>/.../<variable name>"`, without the name of `layer`
    itself, so two models built from the same config have the same keys on Keras 2 and Keras 3.
    Layers must therefore name their sublayers explicitly.

    Args:
        layer: a built `keras.layers.Layer` or model.

    Returns:
        `dict[str, variable]` in creation order; optimizer, metric and seed-generator variables
        are not included.

    Raises:
        ValueError: two variables have the same path, or the layer holds no variable at all.

    Example:
        >>> detector = RetinaNet.from_parts(
        ...     ResNet(18, width=8), FPN(16, name="fpn"), ConvTowers(16), num_classes=3)
        >>> tuple(named_variables(detector)["fpn/lateral_c3/kernel"].shape)
        (1, 1, 16, 16)
    """
    found = {}
    _collect(layer, (), found, set())
    if not found:
        raise ValueError(f"layer {layer.name!r} has no variables; build it first")
    return found


def assign_variables(variables, arrays, source):
    """Assigns arrays to variables of the same names, all or nothing.

    Args:
        variables: `dict[str, variable]`, as `named_variables` gives it.
        arrays: `dict[str, np.ndarray]`.
        source: names the origin in the error.

    Raises:
        CheckpointError: names or shapes differ, or a value is NaN or infinite; all differences are
            listed, nothing is assigned.
    """
    problems = [f"missing: {name}" for name in variables if name not in arrays]
    problems += [f"unexpected: {name}" for name in arrays if name not in variables]
    problems += [
        f"{name}: shape {tuple(arrays[name].shape)}, expected {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in arrays and tuple(arrays[name].shape) != tuple(variable.shape)
    ]
    problems += [f"{name}: holds NaN or infinity" for name in non_finite(arrays)]
    if problems:
        shown = "\n  ".join(
            problems[:20] + [f"... {len(problems) - 20} more"] * (len(problems) > 20)
        )
        raise CheckpointError(f"{source} does not fit:\n  {shown}")
    for name, variable in variables.items():
        variable.assign(arrays[name])


def non_finite(arrays):
    """Returns the names of the arrays that hold NaN or infinity.

    Example:
        >>> non_finite({"kernel": np.zeros(3), "bias": np.array([0.0, np.nan])})
        ['bias']
    """
    return [
        name
        for name, array in arrays.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]


def read_variables(variables):
    """Returns the values of `dict[str, variable]` as numpy arrays."""
    return {name: variable.numpy() for name, variable in variables.items()}


def _collect(layer, path, found, visited):
    if id(layer) in visited:
        return
    visited.add(id(layer))
    children = list(layer._flatten_layers(include_self=False, recursive=False))
    below = {id(variable) for child in children for variable in child.variables}
    for variable in layer.variables:
        if id(variable) not in below and id(variable) not in visited:
            visited.add(id(variable))
            name = variable.name.split("/")[-1].split(":")[0]
            if name.startswith("seed_generator"):
                continue
            key = "/".join((*path, name))
            if key in found:
                raise ValueError(f"two variables are named {key!r}; name the sublayers explicitly")
            found[key] = variable
    for child in children:
        _collect(child, (*path, child.name), found, visited)
