"""The images where a detector errs most."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from sepc_tf.analysis.hot import hotcoco_evaluation
from sepc_tf.data.coco import CocoDataset, ImageRecord
from sepc_tf.errors import UnreadableImageError
from sepc_tf.visualization import prediction_grid


@dataclass(frozen=True)
class ImageErrors:
    """What is wrong in one image, of the detections that score at least a threshold.

    Attributes:
        image: the `ImageRecord`.
        f1: in 0..1, 2 right / (detections + objects).
        right, false, missed: numbers of right detections, of false ones, of objects not found.
        false_names, missed_names: of each class, how many.
        detections: the detections of the image, in COCO's result format.
    """

    image: ImageRecord
    f1: float
    right: int
    false: int
    missed: int
    false_names: Counter
    missed_names: Counter
    detections: list[dict]

    @property
    def caption(self) -> str:
        """What is wrong, in words."""
        parts = [f"{self.right} right"]
        for word, names in (("false", self.false_names), ("missed", self.missed_names)):
            if names:
                listed = ", ".join(f"{count} {name}" for name, count in names.most_common(6))
                more = ", ..." if len(names) > 6 else ""
                parts.append(f"{word}: {listed}{more}")
        return "; ".join(parts)


def worst_images(
    dataset: CocoDataset, results: list[dict], threshold: float, count: int = 12
) -> list[ImageErrors]:
    """The images of the lowest F1; of equal ones, those with more errors come first.

    Args:
        dataset: a `CocoDataset`.
        results: list in COCO's result format.
        threshold: lower scores do not count.
        count: at most so many images; images without an error are none.

    Raises:
        MissingPackageError: hotcoco is not installed.

    Example:
        >>> worst = worst_images(dataset, [], 0.5, count=1)[0]
        >>> worst.f1, worst.right, worst.missed == len(worst.image.boxes)
        (0.0, 0, True)
    """
    shown = [result for result in results if result["score"] >= threshold]
    diagnostics = hotcoco_evaluation(dataset, shown).image_diagnostics(iou_thr=0.5)
    names = dict(zip(dataset.category_ids, dataset.class_names))
    false = {image.image_id: Counter() for image in dataset.images}
    missed = {image.image_id: Counter() for image in dataset.images}
    for number, status in diagnostics["dt_status"].items():
        if status == "fp":
            result = shown[number - 1]
            false[result["image_id"]][names[result["category_id"]]] += 1
    for number, status in diagnostics["gt_status"].items():
        if status == "fn":
            annotation = dataset.coco.anns[number]
            missed[annotation["image_id"]][names[annotation["category_id"]]] += 1
    found = {image.image_id: [] for image in dataset.images}
    for result in shown:
        found[result["image_id"]].append(result)
    errors = []
    for image in dataset.images:
        summary = diagnostics["img_summary"].get(image.image_id)
        if summary is None or not summary["fp"] + summary["fn"]:
            continue
        number = image.image_id
        errors.append(
            ImageErrors(
                image,
                summary["f1"],
                summary["tp"],
                summary["fp"],
                summary["fn"],
                false[number],
                missed[number],
                found[number],
            )
        )
    errors.sort(key=lambda item: (item.f1, -item.false - item.missed))
    return errors[:count]


def draw_errors(dataset: CocoDataset, errors: ImageErrors) -> np.ndarray | None:
    """The detections (left) beside the truth (right).

    Returns:
        uint8 `[H, W, 3]`; None where the image cannot be read.

    Example:
        >>> draw_errors(dataset, worst_images(dataset, [], 0.5)[0]).shape[2]
        3
    """
    try:
        pixels = errors.image.read()
    except UnreadableImageError:
        return None
    label_of = {number: label for label, number in enumerate(dataset.category_ids)}
    boxes = np.array([item["bbox"] for item in errors.detections], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [label_of[item["category_id"]] for item in errors.detections]
    prediction = (boxes, labels, [item["score"] for item in errors.detections])
    row = (pixels, prediction, (errors.image.boxes, errors.image.labels))
    return prediction_grid([row], names=dataset.class_names)
