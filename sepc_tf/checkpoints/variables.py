"""The variables of a layer tree under names that are the same on both Keras stacks."""


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
        >>> named_variables(detector)["neck/lateral_p3/kernel"].shape
        TensorShape([1, 1, 512, 256])
    """
    found = {}
    _collect(layer, (), found, set())
    if not found:
        raise ValueError(f"layer {layer.name!r} has no variables; build it first")
    return found


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
