"""Pretrained weights of a backbone, from any file we can read."""

from pathlib import Path

import keras

from sepc_tf.checkpoints.io import read_state_dict
from sepc_tf.checkpoints.mmdet import CheckpointError, import_state_dict


def load_backbone_weights(backbone, path):
    """Loads classification weights into a built `ResNet`.

    Files: torchvision's ResNet and ResNeXt (`.pth`, `.npz`, `.safetensors`; the classifier `fc.*`
    is left out and reported), a whole mmdetection detector (its `backbone.*` is taken), or
    `.weights.h5` of a Keras model around the backbone alone. Offset convolutions of deformable
    stages that the file does not have keep their zeros, so that they start as plain convolutions.

    Args:
        backbone: a built `sepc_tf.backbones.ResNet`.
        path: the file.

    Returns:
        `ImportReport`; None for a `.weights.h5`, which Keras checks by itself.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is unreadable or its weights are of another network (a wrong
            depth, width or groups); lists every key that does not fit, and nothing is assigned.

    Example:
        >>> print(load_backbone_weights(backbone, "resnet50-0676ba61.pth"))
    """
    if Path(path).name.endswith(".weights.h5"):
        if not Path(path).is_file():
            raise FileNotFoundError(f"checkpoint {path}: no such file")
        images = keras.Input((None, None, 3))
        try:
            keras.Model(images, backbone(images)).load_weights(path)
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {path}: does not fit the backbone ({error})"
            ) from error
        return None
    state_dict = read_state_dict(path)
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
