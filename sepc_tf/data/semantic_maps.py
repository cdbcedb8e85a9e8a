"""Semantic maps: pictures that hold a label for each pixel, as COCO-stuff's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from sepc_tf.data.coco import CocoDataset, ImageRecord
from sepc_tf.data.segmentations import resize_nearest
from sepc_tf.errors import DatasetError, UnreadableImageError
from sepc_tf.ops.semantic_labels import UNKNOWN


@dataclasses.dataclass(frozen=True)
class SemanticMaps:
    """A folder with a PNG for each image: `a/b.jpg` has its labels in `FOLDER/a/b.png`.

    The value of a pixel is its label, 0 .. classes - 1, or 255 where nothing is known. So are the
    `stuffthingmaps` of COCO-stuff, with 183 classes for the authors' detectors.

    Args:
        folder: of the maps.
        classes: number of semantic classes, `detector.options.semantic.classes`.

    Example:
        >>> SemanticMaps("stuffthingmaps/train2017", 183).file_of("000000000009.jpg").name
        '000000000009.png'
    """

    folder: str | Path
    classes: int

    def file_of(self, file_name: str) -> Path:
        """Where the labels of an image are, by its name in the annotations."""
        return (Path(self.folder) / file_name).with_suffix(".png")

    def check(self, dataset: CocoDataset) -> None:
        """Makes sure that every image has a map, and that the first one can be used.

        Raises:
            DatasetError: naming the folder and an image.
        """
        missing = [r.file_name for r in dataset.images if not self.file_of(r.file_name).is_file()]
        if missing:
            raise DatasetError(
                f"data.semantic_maps: {self.folder}: {len(missing)} of {len(dataset)} images have "
                f"no map there, as {missing[0]}, which needs {self.file_of(missing[0])}"
            )
        try:
            self.read(dataset.images[0])
        except UnreadableImageError as error:
            raise DatasetError(f"data.semantic_maps: {error}") from error

    def read(self, record: ImageRecord) -> np.ndarray:
        """The labels of an image.

        Returns:
            uint8 `[height, width]`.

        Raises:
            UnreadableImageError: the map is missing, no picture, of another kind or size, or holds
                a label that is no class.
        """
        path = self.file_of(record.file_name)
        start = f"{record.file_name}: its semantic map {path}"
        try:
            with Image.open(path) as image:
                kind, labels = image.mode, np.array(image)
        # What Pillow raises for a damaged file depends on where the damage is.
        except Exception as error:
            raise UnreadableImageError(f"{start} cannot be read: {error}") from error
        if kind not in ("L", "P"):
            raise UnreadableImageError(
                f"{start} is of the kind {kind}: expected a grey or palette picture of 8 bits, "
                "whose values are labels"
            )
        size = (record.height, record.width)
        if labels.shape != size:
            raise UnreadableImageError(
                f"{start} is {labels.shape[1]} x {labels.shape[0]} pixels, the image "
                f"{size[1]} x {size[0]} (width x height)"
            )
        wrong = labels[(labels >= self.classes) & (labels != UNKNOWN)]
        if wrong.size:
            raise UnreadableImageError(
                f"{start} has the label {wrong.max()}: expected 0 .. {self.classes - 1} "
                f"(detector.options.semantic.classes: {self.classes}), or {UNKNOWN} for unknown"
            )
        return labels


def training_map(
    labels: np.ndarray,
    window: tuple[int, int, int, int],
    place: tuple[int, int],
    canvas_size: tuple[int, int],
    size: tuple[int, int],
    padded_size: tuple[int, int],
    flip: bool,
    convention: str = "modern",
) -> np.ndarray:
    """The labels of the pixels of the training image that an image became.

    Nothing is known of what expanding put around the image. Of the padding neither, in "modern";
    in "mmdet1" it has the label 0, which is that of persons in COCO-stuff, as in the authors' code.

    Args:
        labels: uint8 `[H, W]`, of the file's image.
        window, place, canvas_size, size, flip, convention: as in
            `sepc_tf.data.segmentations.training_mask`, resized as RLE is.
        padded_size: height and width with the padding at the bottom and the right.

    Returns:
        uint8 `[*padded_size]`.

    Example:
        >>> labels = np.array([[3, 4]], np.uint8)
        >>> training_map(labels, (0, 0, 2, 1), (0, 0), (1, 2), (2, 4), (2, 6), flip=True)
        array([[  4,   4,   3,   3, 255, 255],
               [  4,   4,   3,   3, 255, 255]], dtype=uint8)
    """
    (x1, y1, x2, y2), (x, y) = window, place
    canvas = np.full(canvas_size, UNKNOWN, np.uint8)
    canvas[y : y + y2 - y1, x : x + x2 - x1] = labels[y1:y2, x1:x2]
    resized = resize_nearest(canvas, size, convention)
    padded = np.full(padded_size, padding_label(convention), np.uint8)
    padded[: size[0], : size[1]] = resized[:, ::-1] if flip else resized
    return padded


def padding_label(convention: str) -> int:
    """The label of what pads an image, see `training_map`."""
    return 0 if convention == "mmdet1" else UNKNOWN
