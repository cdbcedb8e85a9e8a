"""Exported models in use: any format, one way to call it.

A model file of another runtime than TensorFlow lies beside a description, `FILE.json`, of what is
done around it: `Description`. A SavedModel has everything inside but the class names.

Both carry checksums, so that a model that was damaged or mixed with another export is told, not
used: of the files of a SavedModel in `checksums.json`, of a model file in its description.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from sepc_tf.checkpoints.io import reason_of
from sepc_tf.data.categories import are_categories
from sepc_tf.data.config import DataConfig
from sepc_tf.data.preprocess import resized_size
from sepc_tf.errors import ModelError, UserError
from sepc_tf.files import read_json, sha256
from sepc_tf.inference import detect_images
from sepc_tf.ops.boxes import rescale_boxes
from sepc_tf.ops.nms import multiclass_nms
from sepc_tf.optional import import_package

CHECKSUMS = "checksums.json"  # of a SavedModel: {path in its folder: SHA-256}


@dataclasses.dataclass(frozen=True)
class Description:
    """What is done around a model that maps one padded image to candidates.

    Attributes:
        format: "litert", "onnx" or "openvino".
        precision: "float32", "float16", "bfloat16" or "int8".
        image_size: height and width of its input in pixels.
        categories: `[{"id": int, "name": str}, ...]` in the order of its classes.
        resizing: `test_short_side`, `long_side`, `mean`, `std` and `channel_order` of the run's
            `data`.
        suppression: arguments of `sepc_tf.ops.nms.multiclass_nms`.
    """

    format: str
    precision: str
    image_size: list[int]
    categories: list[dict]
    resizing: dict
    suppression: dict


class ExportedModel:
    """Maps images to detections, by whatever runs the file.

    Attributes:
        categories: `[{"id": int, "name": str}, ...]` in the order of its classes.
        detect: function from `[1, height, width, 3]` uint8 RGB to a dict of NumPy arrays as
            `sepc_tf.inference.detect_images` describes it, without `masks`.

    Args:
        path: what `sepc_tf.export` wrote: a folder, or the model's file.

    Raises:
        ModelError: nothing of that kind is there, or it is damaged.
        MissingPackageError: the runtime is not installed.

    Example:
        >>> model = ExportedModel(export(load_run("runs/demo"), "served"))
        >>> model.detect(np.zeros([1, 48, 64, 3], np.uint8))["boxes"].shape
        (1, 100, 4)
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        if (path / "saved_model.pb").is_file():
            self.categories = _categories_of_saved_model(path)
            # The functions of the model do not keep it alive.
            self._model = _loaded(path, lambda path: tf.saved_model.load(str(path)))
            self.detect = _loaded(path, lambda path: _saved_model(self._model))
            return
        file = model_file(path)
        description = read_description(file)
        self.categories = description.categories
        load = functools.partial(RUNTIMES[description.format], precision=description.precision)
        self.detect = around(description, _loaded(file, load))


def description_file(file: Path) -> Path:
    """Where the description of a model file lies."""
    return file.with_name(f"{file.name}.json")


def described(file: Path, description: Description) -> dict:
    """What stands in `FILE.json`: a description, bound to the content of its model file."""
    fields = dataclasses.asdict(description)
    return {**fields, "sha256": _checksum(file, fields)}


def read_description(file: Path) -> Description:
    """The description of a model file.

    While an export replaces a model, `FILE.json` has the description of the model before it too,
    under "before": whenever it is killed, the file that is there has its description.

    Raises:
        ModelError: `FILE.json` cannot be read, or does not belong to the file as it is.
    """
    path = description_file(file)
    content = _read(path)
    try:
        now = dict(content)
        before = now.pop("before", None)
        entries = [now, dict(before)] if before else [now]
        checksums = [entry.pop("sha256") for entry in entries]
        descriptions = [Description(**entry) for entry in entries]
        formats = [description.format in RUNTIMES for description in descriptions]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is no description of a model ({error}); {_AGAIN}") from error
    if not all(formats):
        raise ModelError(
            f"{path}: format: expected one of {', '.join(RUNTIMES)}, got "
            f"{descriptions[formats.index(False)].format!r}"
        )
    for checksum, entry, description in zip(checksums, entries, descriptions):
        if checksum == _checksum(file, entry):
            return description
    raise ModelError(
        f"{file} and {path} do not belong together: one of them is damaged, changed, or of another "
        f"export; {_AGAIN}"
    )


def model_file(path: Path) -> Path:
    """The file of a model: `path`, or the only described one in that folder.

    Raises:
        ModelError: there is none, or several.
    """
    files = [path]
    if path.is_dir():
        files = [p.with_suffix("") for p in path.glob("*.json") if p.with_suffix("").is_file()]
    if len(files) != 1 or not files[0].is_file() or not description_file(files[0]).is_file():
        raise ModelError(
            f"{path} is no exported model: expected a SavedModel's folder, or a file of "
            "sepc-tf export with its description FILE.json beside it (of a training: --run-dir)"
        )
    return files[0]


def _saved_model(model):
    serve = model.signatures["serving_default"]

    def detect(images):
        outputs = serve(images=tf.constant(images))
        return {name: value.numpy() for name, value in outputs.items() if name != "masks"}

    return detect


def around(description, candidates):
    """The steps around a model of one input size: resizing, suppression, boxes of the image.

    Args:
        description: of the model.
        candidates: function from images `[1, H, W, 3]` float32, normalised and padded, and their
            `[1, 2]` int32 heights and widths without padding to boxes `[1, N, 4]` and scores
            `[1, N, K]`, float32.

    Returns:
        `ExportedModel.detect`. Images that do not fit into the input are made smaller.
    """
    detector = _Candidates(description, candidates)
    given = description.resizing

    def detect(images):
        resized = resized_size(*images.shape[1:3], given["test_short_side"], given["long_side"])
        factor = min(1.0, *(np.array(description.image_size) / resized.numpy()))
        data = DataConfig(
            test_short_side=given["test_short_side"] * factor,
            long_side=given["long_side"] * factor,
            mean=given["mean"],
            std=given["std"],
            channel_order=given["channel_order"],
            size_divisor=1,
        )
        return {name: v.numpy() for name, v in detect_images(detector, data, images).items()}

    return detect


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Stands for a detector in `detect_images`; see `around`."""

    description: Description
    candidates: Callable

    @property
    def convention(self):
        return self.description.suppression["convention"]

    def detect(self, images, image_sizes, original_sizes):
        height, width = self.description.image_size
        padded = np.zeros((1, height, width, 3), np.float32)
        padded[:, : images.shape[1], : images.shape[2]] = images
        boxes, scores = self.candidates(padded, image_sizes.numpy())
        boxes = rescale_boxes(tf.constant(boxes), image_sizes, original_sizes, self.convention)
        return multiclass_nms(boxes, tf.constant(scores), **self.description.suppression)


def _litert(file, precision):
    module = import_package(
        "ai_edge_litert.interpreter", "sepc-tf[litert]", f"a LiteRT model ({file})"
    )
    interpreter = module.Interpreter(model_path=str(file), num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    inputs = {details["name"]: details["index"] for details in interpreter.get_input_details()}
    outputs = [details["index"] for details in interpreter.get_output_details()]

    def candidates(images, image_sizes):
        interpreter.set_tensor(inputs["images"], images)
        interpreter.set_tensor(inputs["image_sizes"], image_sizes)
        interpreter.invoke()
        boxes, scores = (interpreter.get_tensor(index) for index in outputs)
        return boxes, scores

    return candidates


def _onnx(file, precision):
    module = import_package("onnxruntime", "sepc-tf[onnx]", f"an ONNX model ({file})")
    session = module.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def candidates(images, image_sizes):
        inputs = {"images": images, "image_sizes": image_sizes}
        return session.run(["boxes", "scores"], inputs)

    return candidates


def _openvino(file, precision):
    module = import_package("openvino", "sepc-tf[openvino]", f"an OpenVINO model ({file})")
    core = module.Core()
    hint = "f32"  # else bfloat16 where the processor can, whatever was exported
    if precision == "bfloat16":
        hint = "bf16"
        if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ModelError(
                f"{file} computes in bfloat16, which OpenVINO cannot do on this processor; export "
                "it with --precision float32"
            )
    model = core.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": hint})

    def candidates(images, image_sizes):
        outputs = model({"images": images, "image_sizes": image_sizes})
        return outputs["boxes"], outputs["scores"]

    return candidates


# From a format to a function of the file and its precision that loads what computes candidates.
RUNTIMES: dict[str, Callable] = {"litert": _litert, "onnx": _onnx, "openvino": _openvino}


_AGAIN = "export the model again"


def _read(path):
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); {_AGAIN}") from error


def _checksum(file, fields):
    files = [file]
    if file.suffix == ".xml" and file.with_suffix(".bin").is_file():  # OpenVINO's weights
        files.append(file.with_suffix(".bin"))
    text = json.dumps([[sha256(path) for path in files], fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _categories_of_saved_model(folder):
    """The categories, once every file of the folder is known to be as it was exported."""
    if (folder / CHECKSUMS).is_file():  # another program's SavedModel has none
        checksums = _read(folder / CHECKSUMS)
        if not isinstance(checksums, dict):
            raise ModelError(f"{folder / CHECKSUMS} is damaged; {_AGAIN}")
        for name, expected in checksums.items():
            file = folder / name
            if not file.is_file() or sha256(file) != expected:
                what = "damaged or changed" if file.is_file() else "missing"
                raise ModelError(f"{file} is {what} since it was exported; {_AGAIN}")
    categories = _read(folder / "categories.json")
    if not are_categories(categories):
        raise ModelError(
            f'{folder / "categories.json"}: expected a list of {{"id": 1, "name": "cat"}}, one '
            "for each class"
        )
    return categories


def _loaded(path, load):
    """`load(path)`; whatever a runtime raises is a ModelError."""
    try:
        return load(path)
    except UserError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded ({reason_of(error)}); {_AGAIN}") from error
