"""A SavedModel that serves: images in, boxes in their own pixels out."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from sepc_tf.checkpoints.variables import named_variables, read_variables
from sepc_tf.compat import KERAS_3
from sepc_tf.data.decode import decode_upright
from sepc_tf.errors import OutputError
from sepc_tf.exported import CHECKSUMS
from sepc_tf.files import check_writable, exchange, sha256, write_json, writing
from sepc_tf.inference import detect_images
from sepc_tf.ops.deform_conv2d import portable_ops

BEFORE = "before"  # the name of what an export replaces, while it does
# Gradients of the operations would be traced, and are of no use there.
INFERENCE_ONLY = tf.saved_model.SaveOptions(experimental_custom_gradients=False)


class Server(tf.Module):
    """The serving functions of a detector, with everything from resizing to NMS inside.

    Args:
        detector: a `sepc_tf.detectors.Detector`.
        data: the `sepc_tf.config.DataConfig` it was trained with.
    """

    def __init__(self, detector, data):
        super().__init__()
        self.detector = detector
        self.data = data

    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")],
    )
    def serve(self, images):
        """Maps `[batch, height, width, 3]` uint8 RGB images to what `detect_images` returns."""
        with portable_ops():
            return detect_images(self.detector, self.data, images)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def serve_bytes(self, image_bytes):
        """Maps `[batch]` JPEG or PNG files, of any sizes, to what `detect_images` returns.

        They are decoded as `predict` does, see `decode_upright`; boxes are in pixels of the upright
        image. Images are served one after the other: equally sized ones are faster in one batch
        through `serve`.
        """

        def serve_one(contents):
            outputs = self.serve(decode_upright(contents)[None])
            return {name: value[0] for name, value in outputs.items()}

        outputs = self.serve.get_concrete_function().structured_outputs
        specs = {name: tf.TensorSpec(o.shape[1:], o.dtype) for name, o in outputs.items()}
        return tf.map_fn(serve_one, image_bytes, fn_output_signature=specs)


def export_saved_model(run, directory: str | Path) -> Path:
    """Writes a run's detector as a SavedModel.

    It has two signatures: `serving_default` takes `images`, pixels, and `serving_bytes` takes
    `image_bytes`, JPEG or PNG files as they are; see `Server`. The model needs only TensorFlow to
    load. Beside it lies `categories.json`, the class names in the order of `classes`.

    Args:
        run: a `sepc_tf.runs.Run`.
        directory: where to write; replaced only when it holds a SavedModel already.

    Returns:
        The directory.

    Raises:
        OutputError: the directory holds something else, is the working directory or one above it,
            or cannot be written, which is found before the work where there is no room at all.
            What was exported there before stays.

    Example:
        >>> export_saved_model(load_run("runs/demo"), "served").name
        'served'
        >>> serve = tf.saved_model.load("served").signatures["serving_default"]
        >>> serve(images=tf.zeros([1, 480, 640, 3], tf.uint8))["boxes"].shape
        TensorShape([1, 100, 4])
    """
    place = Path(directory).resolve()
    if Path.cwd().is_relative_to(place):
        raise OutputError(f"{directory} is where this command runs; name an empty or a new folder")
    occupied = place.exists() and not (place.is_dir() and not any(place.iterdir()))
    if occupied and not (place / "saved_model.pb").is_file():
        raise OutputError(
            f"{directory} exists and holds no SavedModel; name an empty or a new folder"
        )
    check_writable(place.parent)
    if not KERAS_3:  # its saving asks for a model that has been called itself, not its parts alone
        run.detector(tf.zeros([1, 128, 128, 3]))
    server = Server(run.detector, run.config.data)
    signatures = {
        "serving_default": server.serve.get_concrete_function(),
        "serving_bytes": server.serve_bytes.get_concrete_function(),
    }
    weights = tf.Module()  # alone: functions of what is saved would be traced a second time
    weights.detector = run.detector
    size = sum(value.nbytes for value in read_variables(named_variables(run.detector)).values())
    with folder_beside(place) as folder:
        partial = folder / "model"
        with writing(directory, needed=size):
            tf.saved_model.save(weights, str(partial), signatures, INFERENCE_ONLY)
        write_json(partial / "categories.json", run.categories)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        checksums = {path.relative_to(partial).as_posix(): sha256(path) for path in files}
        write_json(partial / CHECKSUMS, checksums)
        with writing(directory):
            if place.exists():
                _replace(place, partial, folder / BEFORE)
            else:
                os.replace(partial, place)
    return Path(directory)


def _replace(place, new, before):
    """Puts a folder in the place of another one, which a kill does not leave empty."""
    try:
        exchange(new, place)
    except OSError:  # the system cannot; then the next export puts back what a kill left aside
        os.replace(place, before)
        os.replace(new, place)


@contextlib.contextmanager
def folder_beside(place: Path) -> Iterator[Path]:
    """A folder to write in that is gone afterwards; one export at a time has it.

    What a killed export left of it is removed, and what stood in `place` before it is put back.
    """
    folder = place.with_name(f".{place.name}.sepc-tf.partial")
    with writing(place):
        beside = os.open(place.parent, os.O_RDONLY)
    try:
        with writing(place):
            fcntl.flock(beside, fcntl.LOCK_EX)
        with contextlib.ExitStack() as afterwards:
            afterwards.callback(shutil.rmtree, folder, ignore_errors=True)
            with writing(place):
                if (folder / BEFORE).exists() and not place.exists():
                    os.replace(folder / BEFORE, place)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            yield folder
    finally:
        os.close(beside)  # and the lock with it
