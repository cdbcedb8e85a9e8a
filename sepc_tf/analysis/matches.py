"""Which detections are right, by pycocotools' own matching, and what follows from it alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sepc_tf.data.coco import CocoDataset
from sepc_tf.evaluation.coco import accumulated, detections_as_coco

EVERY_AREA = {"areaRng": [[0, 1e10]], "areaRngLbl": ["all"], "maxDets": [100]}


@dataclass(frozen=True)
class Matches:
    """Detections that count (none on crowd regions), best score first, and the objects.

    Attributes:
        scores: `[n]` float64.
        right: `[n]` bool: it has found an object of its class that no better one found.
        labels: `[n]` int, 0-based.
        index: `[n]` int, the place of each in the list of results.
        objects: `[classes]` int, number of objects of each class.
    """

    scores: np.ndarray
    right: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    objects: np.ndarray

    def of_class(self, label: int) -> Matches:
        """The same for one class alone."""
        mine = self.labels == label
        objects = np.where(np.arange(len(self.objects)) == label, self.objects, 0)
        kept = (values[mine] for values in (self.scores, self.right, self.labels, self.index))
        return Matches(*kept, objects)


@dataclass(frozen=True)
class F1Curve:
    """Precision, recall and F1 of what scores at least a threshold, classes taken together.

    Attributes:
        thresholds: `[m]` float64, the scores there are, highest first.
        precision, recall, f1: `[m]`, in 0..1; F1 = 2 p r / (p + r).
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    @property
    def best(self) -> dict[str, float] | None:
        """The point of the highest F1, None where nothing was detected."""
        if not len(self.f1):
            return None
        index = int(np.argmax(self.f1))
        names = {"threshold": self.thresholds, "precision": self.precision}
        names |= {"recall": self.recall, "f1": self.f1}
        return {name: float(values[index]) for name, values in names.items()}


def match(dataset: CocoDataset, results: list[dict], iou: float = 0.5) -> Matches:
    """Matches detections with objects as COCO's evaluation does at one overlap.

    Args:
        dataset: a `CocoDataset`.
        results: list in COCO's result format.
        iou: overlap from which a detection may be right.

    Example:
        >>> int(match(dataset, []).objects.sum()) == len(dataset.coco.anns)
        True
    """
    found = detections_as_coco(dataset, results)
    evaluation = accumulated(dataset, found, iouThrs=np.array([iou]), **EVERY_AREA)
    label_of = {number: label for label, number in enumerate(dataset.category_ids)}
    scores, right = [np.empty(0)], [np.empty(0, bool)]
    labels, index = [np.empty(0, int)], [np.empty(0, int)]
    objects = np.zeros(dataset.num_classes, int)
    for entry in filter(None, evaluation.evalImgs):  # of one image and class each
        label = label_of[entry["category_id"]]
        objects[label] += int((~np.array(entry["gtIgnore"], bool)).sum())
        counts = ~entry["dtIgnore"][0].astype(bool)
        scores.append(np.array(entry["dtScores"], float)[counts])
        right.append(entry["dtMatches"][0][counts] > 0)
        labels.append(np.full(counts.sum(), label))
        index.append(np.array(entry["dtIds"], int)[counts] - 1)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return Matches(*(np.concatenate(v)[order] for v in (scores, right, labels, index)), objects)


def f1_curve(matches: Matches) -> F1Curve:
    """F1 over the score threshold.

    Example:
        >>> scores, right = np.array([0.9, 0.6, 0.3]), np.array([True, True, False])
        >>> labels, index = np.zeros(3, int), np.arange(3)
        >>> f1_curve(Matches(scores, right, labels, index, np.array([2]))).best["threshold"]
        0.6
    """
    # Of equal scores all or none pass a threshold: the curve has a point at the last of them.
    last = np.flatnonzero(np.diff(matches.scores, append=-np.inf))
    thresholds, true = matches.scores[last], np.cumsum(matches.right)[last]
    detected, objects = last + 1, matches.objects.sum()
    precision, recall = true / detected, true / max(objects, 1)
    return F1Curve(thresholds, precision, recall, 2 * true / (detected + max(objects, 1)))


def precision_curves(
    dataset: CocoDataset, results: list[dict], ious: tuple[float, ...] = (0.5, 0.75, 0.9)
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's interpolated precision over recall, whose mean is the average precision.

    Args:
        dataset: a `CocoDataset`.
        results: list in COCO's result format.
        ious: overlaps.

    Returns:
        `[101]` recalls and `[ious, 101, classes]` precision; NaN for a class without objects.

    Example:
        >>> precision_curves(dataset, [])[1].shape
        (3, 101, 10)
    """
    found = detections_as_coco(dataset, results)
    evaluation = accumulated(dataset, found, iouThrs=np.array(ious), **EVERY_AREA)
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    return evaluation.params.recThrs, np.where(precision < 0, np.nan, precision)
