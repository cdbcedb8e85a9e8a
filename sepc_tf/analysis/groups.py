"""AP of objects by their size, their shape, and how many there are in their image."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO

from sepc_tf.data.coco import CocoDataset
from sepc_tf.evaluation.coco import accumulated, detections_as_coco

SIZES = (0, 8, 16, 32, 64, 96, 192, math.inf)  # square root of the area, pixels; COCO's among them
ASPECTS = (0, 1 / 3, 2 / 3, 3 / 2, 3, math.inf)  # width / height
COUNTS = (1, 2, 4, 8, 16, 32, math.inf)  # objects in the image


@dataclass(frozen=True)
class Group:
    """What was reached on the objects of one group.

    Attributes:
        name: as "16 to 32".
        objects: how many there are.
        ap, ap50: COCO's AP and AP at IoU 0.5 of them; None without objects.
    """

    name: str
    objects: int
    ap: float | None
    ap50: float | None


def ap_by_size(dataset: CocoDataset, results: list[dict]) -> list[Group]:
    """AP by the square root of the annotated area, in pixels of the original image."""
    return ap_by(dataset, results, lambda item, _: math.sqrt(item["area"]), SIZES)


def ap_by_aspect(dataset: CocoDataset, results: list[dict]) -> list[Group]:
    """AP by width / height of the box."""
    return ap_by(
        dataset, results, lambda item, _: item["bbox"][2] / max(item["bbox"][3], 1e-9), ASPECTS
    )


def ap_by_count(dataset: CocoDataset, results: list[dict]) -> list[Group]:
    """AP by the number of objects in the image, crowd regions not counted."""

    def count(item, others):
        return sum(not other["iscrowd"] for other in others)

    return ap_by(dataset, results, count, COUNTS, whole_numbers=True)


def ap_by(
    dataset: CocoDataset,
    results: list[dict],
    value: Callable[[dict, list[dict]], float],
    edges: tuple[float, ...],
    whole_numbers: bool = False,
) -> list[Group]:
    """AP of the objects whose value lies between two edges, as COCO has it for areas.

    Objects of other groups are ignored; so are detections that match nothing and whose own value
    lies outside.

    Args:
        dataset: a `CocoDataset`.
        results: list in COCO's result format.
        value: function of an annotation (or detection) and of the annotations of its image.
        edges: lower edges of the groups, and the upper one of the last.
        whole_numbers: values are; "2 to 3" then names what is at least 2 and below 4.

    Returns:
        list of `Group`, of those that have objects.

    Example:
        >>> groups = ap_by(dataset, [], lambda item, _: item["bbox"][2], (0, 300, math.inf))
        >>> [group.name for group in groups]
        ['below 300']
    """
    # pycocotools sorts by the key `area`, whatever is written there. Its ranges include both ends.
    truth, found = _copy(dataset.coco), detections_as_coco(dataset, results)
    for coco in (truth, found):
        for item in coco.anns.values():
            item["area"] = value(item, dataset.coco.imgToAnns[item["image_id"]])
    ranges = [[low, np.nextafter(high, 0)] for low, high in itertools.pairwise(edges)]
    evaluation = accumulated(
        dataclasses.replace(dataset, coco=truth),
        found,
        areaRng=ranges,
        areaRngLbl=[str(number) for number in range(len(ranges))],
        maxDets=[100],
    )
    images = {image.image_id for image in dataset.images}
    values = [
        item["area"]
        for item in truth.anns.values()
        if not item["iscrowd"] and item["image_id"] in images
    ]
    counts, _ = np.histogram(values, edges)
    precision = evaluation.eval["precision"][..., 0]  # IoU, recall, class, group
    return [
        Group(
            _range_name(edges[number], edges[number + 1], whole_numbers),
            int(count),
            _mean(precision[:, :, :, number]),
            _mean(precision[0, :, :, number]),
        )
        for number, count in enumerate(counts)
        if count
    ]


def _copy(coco):
    copied = COCO()
    copied.dataset = {**coco.dataset, "annotations": [dict(item) for item in coco.anns.values()]}
    with contextlib.redirect_stdout(io.StringIO()):
        copied.createIndex()
    return copied


def _mean(precision):
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else None


def _range_name(low, high, whole_numbers):
    if whole_numbers:
        if high == math.inf:
            return f"{low} or more"
        return f"{low}" if high == low + 1 else f"{low} to {high - 1}"
    first, last = (f"{edge:.0f}" if edge >= 10 else f"{edge:.2g}" for edge in (low, high))
    if high == math.inf:
        return f"from {first}"
    return f"below {last}" if low == 0 else f"{first} to {last}"
