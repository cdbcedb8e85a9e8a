"""Predictions for image files: boxes, masks, pictures, JSON."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from sepc_tf.data.images import IMAGE_SUFFIXES, read_image
from sepc_tf.data.segmentations import decode_mask
from sepc_tf.errors import UnreadableImageError
from sepc_tf.evaluation.coco import encode_detections
from sepc_tf.exported import ExportedModel
from sepc_tf.files import check_writable, write_json, writing
from sepc_tf.inference import detect_images
from sepc_tf.ops.boxes import LAST_PIXEL
from sepc_tf.progress import track
from sepc_tf.runs import Run
from sepc_tf.visualization import draw_detections, one_per_object

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: `[n, 4]` float32, xyxy in pixels of the image.
        scores: `[n]` float32 in 0..1.
        classes: `[n]` int32, index into `names`.
        names: `n` class names.
        segmentations: of a detector with masks, `n` masks as COCO's compressed RLE, in the size of
            the image (`sepc_tf.data.segmentations.decode_mask` has the pixels); None of others.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    names: list[str]
    segmentations: list[dict] | None = None

    def masks(self) -> list[np.ndarray] | None:
        """The masks, `n` uint8 `[H, W]` of 0 and 1; None of a detector without."""
        if self.segmentations is None:
            return None
        return [decode_mask(rle, *rle["size"]) for rle in self.segmentations]


class Predictor:
    """Runs a detector on single images; keep one object for many images.

    Args:
        model: a `sepc_tf.runs.Run`, or a `sepc_tf.exported.ExportedModel` of any format.

    Attributes:
        categories: `[{"id": int, "name": str}, ...]` in the order of the classes.

    Example:
        >>> detections = Predictor(load_run("runs/demo"))("image.jpg")
        >>> len(detections.names) == len(detections.boxes)
        True
    """

    def __init__(self, model: Run | ExportedModel):
        self.categories = model.categories
        if isinstance(model, ExportedModel):
            self._detect = model.detect
        else:
            self._convention = model.detector.convention
            self._detect = tf.function(
                functools.partial(detect_images, model.detector, model.config.data),
                autograph=False,
                input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)],
            )

    def __call__(self, image: str | Path | np.ndarray) -> Detections:
        """Detects objects in one image.

        Args:
            image: a path, or `[height, width, 3]` uint8 RGB.

        Returns:
            `Detections`.

        Raises:
            UnreadableImageError: the file cannot be read.
            ValueError: the array has another shape or type.
        """
        if isinstance(image, str | Path):
            image = read_image(image)
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"image: expected [height, width, 3] uint8, got {image.shape} {image.dtype}"
            )
        result = {name: np.asarray(v[0]) for name, v in self._detect(image[None]).items()}
        count = int(result["num_detections"])
        boxes, classes = result["boxes"][:count], result["classes"][:count]
        segmentations = None
        if "masks" in result:
            # `detect_images` has added the last pixel to the boxes of "mmdet1".
            ends = boxes - np.float32([0, 0, 1, 1]) * LAST_PIXEL[self._convention]
            segmentations = encode_detections(
                result["masks"][:count], ends, *image.shape[:2], self._convention
            )
        return Detections(
            boxes=boxes,
            scores=result["scores"][:count],
            classes=classes,
            names=[self.categories[index]["name"] for index in classes],
            segmentations=segmentations,
        )


def predict_files(
    model: Run | ExportedModel,
    paths: Sequence[str | Path],
    out_dir: str | Path,
    min_score: float = 0.3,
    limit: int | None = None,
    draw_one_per_object: bool = False,
) -> tuple[dict[str, Detections], dict[str, str]]:
    """Predicts for image files and folders; draws each and writes `predictions.json`.

    Args:
        model: as of `Predictor`.
        paths: image files or folders (searched recursively).
        out_dir: where the pictures and `predictions.json` go.
        min_score: boxes below are not drawn; the JSON has them all.
        limit: at most so many images.
        draw_one_per_object: of boxes that overlap by half or more only the best is drawn, whatever
            their classes; the JSON has them all.

    Returns:
        (`dict[str, Detections]` by file name, `dict[str, str]` of errors of unreadable files).

    Raises:
        FileNotFoundError: a path does not exist.
        FileExistsError: `out_dir` is a folder of input images.
        OutputError: `out_dir` cannot be written to, found before the work starts, or is full.
        ValueError: `limit` is below 1, or `min_score` not within 0..1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1, got {limit}")
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score: expected a number within 0..1, got {min_score}")
    files = list_images(paths)[:limit]
    out_dir = Path(out_dir)
    check_writable(out_dir)
    overwritten = {path.resolve().parent for path in files} & {out_dir.resolve()}
    if overwritten:
        raise FileExistsError(
            f"{out_dir} holds input images, which the pictures could replace; give another --out"
        )
    predictor = Predictor(model)
    found, failed, used = {}, {}, set()
    for path in track(files, description="predicting"):
        try:
            image = read_image(path)
        except UnreadableImageError as error:
            failed[str(path)] = str(error)
            log.warning("skipped: %s", error)
            continue
        try:
            detections = predictor(image)
        except tf.errors.InvalidArgumentError as error:  # a shape that this detector cannot take
            failed[str(path)] = error.message
            log.warning("skipped: %s: %s", path, error.message)
            continue
        found[str(path)] = detections
        drawn = detections.scores >= min_score
        if draw_one_per_object:
            drawn &= one_per_object(detections.boxes, detections.scores)
        masks = detections.masks()
        picture = draw_detections(
            image,
            detections.boxes[drawn],
            detections.classes[drawn],
            scores=detections.scores[drawn],
            names=[category["name"] for category in model.categories],
            masks=masks and [mask for mask, shown in zip(masks, drawn) if shown],
        )
        file = out_dir / _unused_name(path.stem, used)
        with writing(file):
            Image.fromarray(picture).save(file, quality=92)
    write_json(
        out_dir / "predictions.json",
        {
            "images": [
                {
                    "file": name,
                    "detections": [
                        {
                            "category_id": model.categories[c]["id"],
                            "name": model.categories[c]["name"],
                            "score": float(score),
                            "box_xyxy": [float(v) for v in box],
                            **({"segmentation": d.segmentations[i]} if d.segmentations else {}),
                        }
                        for i, (box, score, c) in enumerate(zip(d.boxes, d.scores, d.classes))
                    ],
                }
                for name, d in found.items()
            ],
            "unreadable": [{"file": name, "error": text} for name, text in failed.items()],
        },
    )
    return found, failed


def list_images(paths: Sequence[str | Path]) -> list[Path]:
    """Returns the image files of files and folders, sorted within each folder.

    Raises:
        FileNotFoundError: a path does not exist, or none of them is or holds an image.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path} does not exist; expected an image file or a folder")
    if not files:
        raise FileNotFoundError(
            f"there is no image in {', '.join(map(str, paths))}; expected files that end in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return files


def _unused_name(stem, used):
    """A picture's file name; images of equal names in two folders are told apart."""
    name, number = f"{stem}.jpg", 1
    while name in used:
        number += 1
        name = f"{stem}_{number}.jpg"
    used.add(name)
    return name
