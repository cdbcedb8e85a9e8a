"""Pretrained weights of a backbone, from any file we can read."""

from pathlib import Path

import keras

from sepc_tf.checkpoints.io import read_state_dict, reason_of
from sepc_tf.checkpoints.mmdet import import_state_dict
from sepc_tf.checkpoints.variables import assign_variables, named_variables, read_variables
from sepc_tf.errors import CheckpointError


def load_backbone_weights(backbone, path):
    """Loads classification weights into a built `ResNet` or `KerasCVFeatures`.

    Files: torchvision's ResNet and ResNeXt (`.pth`, `.npz`, `.safetensors`; the classifier `fc.*`
    is left out and reported), or a whole mmdetection detector (its `backbone.*` is taken). Of ours:
    a checkpoint of a run (`.npz`), a `.keras` file of a detector or of a model around a backbone,
    and `.weights.h5` of a model around the backbone alone. Offset convolutions of deformable stages
    that the file does not have keep their zeros, so that they start as plain convolutions. For a
    KerasCV backbone: what its own `save_weights` wrote (`.weights.h5`), and files of ours.

    Args:
        backbone: a built `sepc_tf.backbones.ResNet` or `KerasCVFeatures`.
        path: the file.

    Returns:
        `ImportReport` for files of other frameworks, None for ours.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is unreadable or its weights are of another network (a wrong
            depth, width or groups); lists every key that does not fit, and nothing is assigned.

    Example, with torchvision's file:
        >>> report = load_backbone_weights(ResNet(50), "resnet50-0676ba61.pth")  # doctest: +SKIP
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    if Path(path).name.endswith(".weights.h5"):
        _load_keras_weights(backbone, path)
        return None
    if Path(path).suffix == ".keras":
        _assign(backbone, _backbone_of_keras_file(path, type(backbone)), path)
        return None
    state_dict = read_state_dict(path)
    for prefix in ("ema/backbone/", "model/backbone/"):  # a run's own; averages are better
        own = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
        if own:
            _assign(backbone, own, path)
            return None
    if hasattr(backbone, "load_backbone_weights"):
        raise CheckpointError(
            f"checkpoint {path}: holds no weights of a KerasCV backbone; expected a .weights.h5 "
            "file that backbone.save_weights wrote, or a run's checkpoint"
        )
    prefix = "backbone."
    if any(key.startswith(prefix) for key in state_dict):
        state_dict = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
    ignore = ["fc.*"]
    if not any(".conv_offset." in key for key in state_dict):
        ignore.append("*.conv_offset.*")
    return import_state_dict(backbone, state_dict, ignore=ignore)


def _load_keras_weights(backbone, path):
    images = keras.Input((None, None, 3))
    try:
        if hasattr(backbone, "load_backbone_weights"):
            backbone.load_backbone_weights(path)
        else:
            keras.Model(images, backbone(images)).load_weights(path)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path}: does not fit the backbone ({reason_of(error)})"
        ) from error


def _backbone_of_keras_file(path, cls):
    """Path -> array of the first layer of class `cls` in a saved model."""
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path}: Keras cannot load it ({reason_of(error)})"
        ) from error
    for layer in [model, getattr(model, "backbone", None), *getattr(model, "layers", [])]:
        if isinstance(layer, cls):
            return read_variables(named_variables(layer))
    raise CheckpointError(f"checkpoint {path}: the model has no {cls.__name__} layer")


def _assign(backbone, arrays, path):
    variables = named_variables(backbone)
    if not any("/offset/" in key for key in arrays):
        variables = {key: value for key, value in variables.items() if "/offset/" not in key}
    assign_variables(variables, arrays, f"checkpoint {path}")
