"""A SavedModel that serves: uint8 images of any size in, boxes in their own pixels out."""

import json
import os
import shutil
from pathlib import Path

import tensorflow as tf

from sepc_tf.inference import detect_images
from sepc_tf.ops.deform_conv2d import portable_ops


class Server(tf.Module):
    """The serving function of a detector, with everything from resizing to NMS inside.

    Args:
        detector: a `sepc_tf.detectors.Detector`.
        data: the `sepc_tf.config.DataConfig` it was trained with.
    """

    def __init__(self, detector, data):
        super().__init__()
        self.detector = detector
        self.data = data

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def serve(self, images):
        """Maps `[batch, height, width, 3]` uint8 RGB images to what `detect_images` returns."""
        with portable_ops():
            return detect_images(self.detector, self.data, images)


def export(run, directory):
    """Writes a run's detector as a SavedModel with one signature, `serving_default`.

    The model needs only TensorFlow to load. Beside it lies `categories.json`, the class names in
    the order of `classes`.

    Args:
        run: a `sepc_tf.runs.Run`.
        directory: where to write; replaced only when it holds a SavedModel already.

    Returns:
        The directory as a `Path`.

    Raises:
        FileExistsError: the directory holds something else.

    Example:
        >>> export(load_run("runs/demo"), "served")
        >>> serve = tf.saved_model.load("served").signatures["serving_default"]
        >>> serve(images=tf.zeros([1, 480, 640, 3], tf.uint8))["boxes"].shape
        TensorShape([1, 100, 4])
    """
    directory = Path(directory)
    occupied = directory.exists() and not (directory.is_dir() and not any(directory.iterdir()))
    if occupied and not (directory / "saved_model.pb").is_file():
        raise FileExistsError(
            f"{directory} exists and holds no SavedModel; name an empty or a new folder"
        )
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    server = Server(run.detector, run.config.data)
    tf.saved_model.save(server, str(partial), signatures={"serving_default": server.serve})
    (partial / "categories.json").write_text(json.dumps(run.categories, indent=2) + "\n")
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(partial, directory)
    return directory
