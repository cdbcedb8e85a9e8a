"""Data sets in COCO format: an annotation file and a folder of images."""

import contextlib
import dataclasses
import io
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sepc_tf.data.check import (
    annotation_problems,
    raise_on_errors,
    read_annotations,
    size_difference,
)
from sepc_tf.data.images import decode_image
from sepc_tf.data.segmentations import mask_fault
from sepc_tf.errors import DatasetError, UnreadableImageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRecord:
    """One image and what is learnt from it.

    Attributes:
        image_id: the data set's own id.
        file_name: as in the annotation file, for messages.
        width, height: annotated size, pixels.
        boxes: float32 `[n, 4]` xyxy in pixels of the image, clipped to it.
        labels: int32 `[n]`, 0-based.
        segmentations: tuple of n, each as in the annotation file (`sepc_tf.data.segmentations`), or
            None for an object without.
        read_bytes: returns the bytes of the image file.
    """

    image_id: int
    file_name: str
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    segmentations: tuple
    read_bytes: Callable[[], bytes]

    def read(self):
        """The image as uint8 `[H, W, 3]` RGB.

        Raises:
            UnreadableImageError: it cannot be read, or its size is not the annotated one, so that
                the boxes would be at the wrong place.
        """
        try:
            contents = self.read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"{self.file_name}: {error.strerror or error}") from error
        pixels = decode_image(contents, name=self.file_name)
        wrong = size_difference((self.width, self.height), pixels.shape[1::-1])
        if wrong:
            raise UnreadableImageError(f"{self.file_name}: {wrong}")
        return pixels


@dataclass(frozen=True)
class CocoDataset:
    """A data set in COCO format; `CocoDataset.load` makes one.

    What is trained on follows COCO's and mmdetection's practice: crowd regions are left out (they
    stay in `coco`, so evaluation ignores detections on them), and so are boxes whose width or
    height is below one pixel or whose area is 0. Labels are 0-based in the order of the category
    ids.

    Attributes:
        name: for messages and tables.
        images: tuple of `ImageRecord`, in the order of the file.
        class_names: tuple, one name per label.
        category_ids: tuple, one category id per label.
        coco: the annotations as a `pycocotools.coco.COCO`, the truth that evaluation uses.
    """

    name: str
    images: tuple
    class_names: tuple
    category_ids: tuple
    coco: object

    @classmethod
    def load(cls, annotations_json, image_dir):
        """Reads an annotation file and makes sure that it can be used.

        The checks are those that need no decoding; `check_dataset` does the rest.

        Args:
            annotations_json: path of the annotation file.
            image_dir: folder that the file names in it are relative to.

        Returns:
            A `CocoDataset`.

        Raises:
            DatasetError: naming the file and each kind of error found in it.

        Example:
            >>> dataset = CocoDataset.load(
            ...     "demo_data/annotations/instances_val.json", "demo_data/val")
            >>> dataset.class_names[:2], len(dataset)
            (('zero', 'one'), 4)
        """
        content = read_annotations(annotations_json)
        return cls.from_folder(content, image_dir, name=str(annotations_json))

    @classmethod
    def from_folder(cls, content, image_dir, name):
        """A data set from annotations in memory and a folder of images; checked as by `load`.

        Args:
            content: dict with `images`, `annotations`, `categories`, well formed.
            image_dir: folder that the file names in it are relative to.
            name: for messages.
        """
        raise_on_errors(annotation_problems(content, image_dir), name)

        def reader(file_name):
            return Path(os.path.join(image_dir, file_name)).read_bytes

        return cls.from_content(content, reader, name)

    @classmethod
    def from_content(cls, content, reader, name):
        """A data set from the content of a valid annotation file.

        Args:
            content: dict with `images`, `annotations`, `categories`.
            reader: function of a file name that returns a function that returns the file's bytes.
            name: for messages.
        """
        coco = _as_coco(content)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        category_ids = tuple(category["id"] for category in categories)
        label_of = {number: label for label, number in enumerate(category_ids)}
        records = []
        for image in content["images"]:
            boxes, labels, segmentations = _training_objects(
                image, coco.imgToAnns[image["id"]], label_of
            )
            records.append(
                ImageRecord(
                    image_id=image["id"],
                    file_name=image["file_name"],
                    width=image["width"],
                    height=image["height"],
                    boxes=boxes,
                    labels=labels,
                    segmentations=segmentations,
                    read_bytes=reader(image["file_name"]),
                )
            )
        return cls(
            name=name,
            images=tuple(records),
            class_names=tuple(category["name"] for category in categories),
            category_ids=category_ids,
            coco=coco,
        )

    def __len__(self):
        return len(self.images)

    @property
    def num_classes(self):
        return len(self.class_names)

    def without_empty_images(self):
        """The same data set without the images that have nothing to learn from.

        mmdetection trains so, hence the published numbers do; evaluation uses all images.
        """
        kept = tuple(image for image in self.images if len(image.boxes))
        if not kept:
            raise DatasetError(f"{self.name}: no image has a box to train on")
        return dataclasses.replace(self, images=kept)

    def check_trainable(self):
        """Makes sure that there is something to learn.

        Raises:
            DatasetError: there is no box, or more than half of those annotated are dropped.
        """
        objects = [
            annotation
            for image in self.images
            for annotation in self.coco.imgToAnns[image.image_id]
            if not annotation["iscrowd"]
        ]
        used = sum(len(image.boxes) for image in self.images)
        dropped = len(objects) - used
        reason = (
            f"{dropped} of its {len(objects)} boxes are dropped (narrower or lower than 1 pixel, "
            "of area 0, or outside their image); check-dataset shows examples"
        )
        if not objects:
            raise DatasetError(f"{self.name}: there is no box to train on, only images")
        if not used:
            raise DatasetError(f"{self.name}: there is no box to train on: {reason}")
        if dropped > used:
            raise DatasetError(
                f"{self.name}: {reason}. Mend the annotations, or remove these boxes"
            )

    def with_usable_masks(self):
        """The same data set with None in place of every segmentation that is no mask.

        An object whose segmentation is broken, or lies outside its box, keeps its box. The log says
        once how many there are of each kind, with examples.

        Returns:
            A `CocoDataset`.

        Raises:
            DatasetError: no object has a mask.

        Example:
            >>> masks = dataset.with_usable_masks().images[0].segmentations
        """
        found = Counter()
        examples, usable, images = {}, 0, []
        for image in self.images:
            segmentations = []
            for box, segmentation in zip(image.boxes.tolist(), image.segmentations):
                fault = mask_fault(segmentation, box, image.height, image.width)
                if fault:
                    found[fault] += 1
                    examples.setdefault(fault, image.file_name)
                segmentations.append(None if fault else segmentation)
                usable += not fault
            images.append(dataclasses.replace(image, segmentations=tuple(segmentations)))
        kinds = ", ".join(
            f"{count} x {fault} (as in {examples[fault]})" for fault, count in found.items()
        )
        if not usable:
            raise DatasetError(
                f"{self.name}: this detector learns masks, and no object has one: "
                f"{kinds or 'there are no objects'}. Give annotations with segmentations "
                "(polygons or RLE), or train a detector of boxes"
            )
        if found:
            logger.warning(
                "%s: %d of %d objects are trained without a mask, their boxes are: %s",
                self.name,
                found.total(),
                found.total() + usable,
                kinds,
            )
        return dataclasses.replace(self, images=tuple(images))

    def first(self, count):
        """The same data set cut to its first `count` images, evaluation included."""
        if not 1 <= count <= len(self):
            raise ValueError(f"count must be in 1..{len(self)}, got {count}")
        return dataclasses.replace(self, images=self.images[:count])

    def file_names(self, image_ids):
        """File names of the given image ids; an id of -1 (padding of a batch) gives none."""
        return [self.coco.imgs[int(i)]["file_name"] for i in image_ids if int(i) in self.coco.imgs]


def _as_coco(content):
    from pycocotools.coco import COCO

    content = {**content, "annotations": [dict(entry) for entry in content["annotations"]]}
    # pycocotools takes a match with an annotation of id 0 for none.
    shift = 1 if any(annotation["id"] == 0 for annotation in content["annotations"]) else 0
    for annotation in content["annotations"]:
        annotation["id"] += shift
        # It needs both keys; data sets without crowds often leave them out.
        if annotation.get("iscrowd") is None:
            annotation["iscrowd"] = 0
        if annotation.get("area") is None:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _training_objects(image, annotations, label_of):
    boxes, labels, segmentations = [], [], []
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        if annotation["iscrowd"] or annotation["area"] <= 0 or width < 1 or height < 1:
            continue
        # Not np.clip: on two numbers it takes ten times as long, for a million of boxes seconds.
        x1, x2 = min(max(x, 0), image["width"]), max(min(x + width, image["width"]), 0)
        y1, y2 = min(max(y, 0), image["height"]), max(min(y + height, image["height"]), 0)
        boxes.append((x1, y1, x2, y2))
        labels.append(label_of[annotation["category_id"]])
        segmentations.append(annotation.get("segmentation") or None)
    boxes, labels = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32)
    # In float32, where a sliver at the edge of the image may have no width any more.
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[kept], labels[kept], tuple(itertools.compress(segmentations, kept))
