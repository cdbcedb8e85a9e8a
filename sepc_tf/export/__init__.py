"""Detectors for use elsewhere: a SavedModel, or a file for another runtime."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sepc_tf.data.preprocess import resized_size
from sepc_tf.data.sources import load_split
from sepc_tf.errors import ModelError, OutputError, UnreadableImageError, UserError
from sepc_tf.export.candidates import candidates
from sepc_tf.export.saved_model import export_saved_model, folder_beside
from sepc_tf.exported import (
    Description,
    around,
    described,
    description_file,
    read_description,
)
from sepc_tf.files import check_writable, write_json, writing

# Format -> how its files end. Each has a module here with `PRECISIONS` and `write`.
SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "openvino": ".xml"}
FORMATS = ("saved_model", *SUFFIXES)
CALIBRATION_IMAGES = 32


def export(
    run,
    path: str | Path,
    format: str = "saved_model",
    precision: str = "float32",
    image_size: tuple[int, int] | None = None,
) -> Path:
    """Writes a run's detector for use elsewhere.

    "saved_model" has everything from resizing to suppression inside; see `export_saved_model`. The
    other formats are a file that maps one padded image to candidates, see
    `sepc_tf.export.candidates`; a description beside it, `FILE.json`, has what
    `sepc_tf.exported.ExportedModel` needs to do the rest.

    Args:
        run: a `sepc_tf.runs.Run`.
        path: folder of a SavedModel; else a file that ends as those of the format, or a folder to
            write `model.tflite`, `model.onnx` or `model.xml` to.
        format: one of `FORMATS`.
        precision: "float32", "float16" (litert, openvino), "bfloat16" (openvino) or "int8".
        image_size: height and width of the input in pixels, multiples of `data.size_divisor`; not
            of "saved_model", which takes any. By default the smallest that holds every validation
            image as evaluation resizes it. An image that does not fit is made smaller.

    Returns:
        The path.

    Raises:
        OutputError: the path cannot be written to, or another file is there.
        MissingPackageError: the format's packages are not installed; the message names them.
        UserError: an argument that does not fit the format, or a detector that the format cannot
            hold.

    Example:
        >>> export(load_run("runs/demo"), "served").name
        'served'
        >>> serve = tf.saved_model.load("served").signatures["serving_default"]
        >>> serve(images=tf.zeros([1, 480, 640, 3], tf.uint8))["boxes"].shape
        TensorShape([1, 100, 4])
    """
    known = precisions(format)
    if format == "saved_model":
        if precision != "float32" or image_size is not None:
            raise UserError(
                "a SavedModel is float32 and takes images of any size: precision and image_size "
                f"are of the formats {', '.join(SUFFIXES)}"
            )
        return export_saved_model(run, path)
    writer = importlib.import_module(f"{__name__}.{format}")
    if precision not in known:
        raise UserError(f"precision: format {format} has {', '.join(known)}; got {precision!r}")
    size = _checked_size(run, image_size)
    file = Path(path)
    if file.suffix != SUFFIXES[format]:
        file = file / f"model{SUFFIXES[format]}"
    if file.is_dir():
        raise OutputError(f"{file} is a folder; name a file or a folder to write one in")
    check_writable(file.parent)
    module = candidates(run.detector, size)
    description = _description(run, format, precision, size)
    with folder_beside(file.resolve()) as folder:
        part = folder / file.name
        with writing(file):
            writer.write(module, part, precision, lambda: _samples(run, description))
        now, before = described(part, description), _described_before(file)
        # Whenever this is killed, the model that is there has its description.
        _describe(file, {**now, "before": before} if before else now, folder)
        with writing(file):
            for part in sorted(folder.iterdir()):  # a format may have weights beside its graph
                os.replace(part, file.parent / part.name)
        _describe(file, now, folder)
    return Path(path)


def precisions(format: str) -> tuple[str, ...]:
    """What a format can store numbers as.

    Raises:
        UserError: an unknown format.

    Example:
        >>> precisions("saved_model")
        ('float32',)
    """
    if format not in FORMATS:
        raise UserError(f"format: expected one of {FORMATS}, got {format!r}")
    if format == "saved_model":
        return ("float32",)
    return importlib.import_module(f"{__name__}.{format}").PRECISIONS


def _describe(file, content, folder):
    """Writes the description of a model file; `folder` takes it until it is whole."""
    text = folder / "description"
    write_json(text, content)
    with writing(file):
        os.replace(text, description_file(file))


def _described_before(file):
    """What stands in `FILE.json` of the model that is there, or None."""
    if not file.is_file():
        return None
    try:
        return described(file, read_description(file))
    except ModelError:
        return None


def _checked_size(run, size):
    divisor = run.config.data.size_divisor
    if size is None:
        return _size_of_validation(run)
    if any(side < 1 or side % divisor for side in size):
        raise UserError(
            f"image_size: expected multiples of {divisor} (data.size_divisor), got "
            f"{'x'.join(map(str, size))}"
        )
    return tuple(size)


def _size_of_validation(run):
    """The smallest size that holds all validation images as they are resized."""
    data = run.config.data
    try:
        images = load_split(data, "val").images
    except (UserError, OSError) as error:
        raise UserError(
            f"the size of the validation images is not known ({error}); give --image-size HxW"
        ) from error
    sizes = {(image.height, image.width) for image in images}
    resized = [resized_size(*s, data.test_short_side, data.long_side).numpy() for s in sizes]
    sides = np.max(resized, axis=0)
    return tuple(int(-(-side // data.size_divisor) * data.size_divisor) for side in sides)


def _description(run, format, precision, size):
    data = run.config.data
    return Description(
        format=format,
        precision=precision,
        image_size=list(size),
        categories=run.categories,
        resizing={
            "test_short_side": data.test_short_side,
            "long_side": data.long_side,
            "mean": [*data.mean],
            "std": [*data.std],
            "channel_order": data.channel_order,
        },
        suppression=run.detector.suppression,
    )


def _samples(run, description) -> Iterator[dict]:
    """Inputs made of the first training images, to calibrate with."""
    inputs = []

    def no_candidates(images, image_sizes):
        inputs.append({"images": images, "image_sizes": image_sizes})
        classes = len(description.categories)
        return np.zeros([1, 1, 4], np.float32), np.zeros([1, 1, classes], np.float32)

    detect = around(description, no_candidates)
    for record in load_split(run.config.data, "train").images[:CALIBRATION_IMAGES]:
        try:
            detect(record.read()[None])
        except UnreadableImageError:
            continue
        yield inputs.pop()
