"""Average precision of images that count more than once, or not at all.

pycocotools matches detections with objects image by image; drawing images with replacement changes
only how often each match counts. So images are matched once, by pycocotools, and a drawn sample
costs a few cumulative sums. (hotcoco has such a bootstrap too, but its intervals came out a tenth
narrower than those of pycocotools on the same images drawn one by one, and samples of neighbouring
seeds are nearly all the same.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sepc_tf.data.coco import CocoDataset
from sepc_tf.evaluation.coco import accumulated, detections_as_coco

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class _Matched:
    """The matches of one class and one range of areas, best score first.

    `image` `[D]` is the place of a detection's image, `right` and `wrong` `[IoUs, D]` say what it
    is at each overlap (neither, where it is ignored), `objects` `[images]` counts objects.
    """

    image: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    objects: np.ndarray


class WeightedPrecision:
    """COCO's average precisions as a function of how often each image counts.

    Args:
        dataset: a `CocoDataset`.
        results: list in COCO's result format.

    Example:
        >>> precision = WeightedPrecision(dataset, [])
        >>> precision(np.ones(len(dataset)))["AP"]
        0.0
    """

    def __init__(self, dataset: CocoDataset, results: list[dict]) -> None:
        evaluation = accumulated(dataset, detections_as_coco(dataset, results), maxDets=[100])
        self.recalls = evaluation.params.recThrs
        self.ious = evaluation.params.iouThrs
        images, areas = len(dataset), len(evaluation.params.areaRng)
        entries = evaluation.evalImgs  # by class, area, image
        self._matched = [
            [
                _matched(entries[start : start + images], len(self.ious))
                for start in range(area * images, len(entries), areas * images)
            ]
            for area in range(areas)
        ]

    def __call__(self, weights: np.ndarray) -> dict[str, float | None]:
        """AP, AP50, AP75, APs, APm and APl; None without objects.

        Args:
            weights: `[images]`, how often each image counts.
        """
        of_areas = []  # [classes with objects, IoUs] of each
        for matched in self._matched:
            values = [self._average_precision(item, weights) for item in matched]
            of_areas.append(np.array([value for value in values if value is not None]))
        every, *by_area = of_areas
        at = [np.flatnonzero(np.isclose(self.ious, iou))[0] for iou in (0.5, 0.75)]
        found = [every, *(every[:, [k]] if len(every) else every for k in at), *by_area]
        return {
            name: float(values.mean()) if values.size else None
            for name, values in zip(METRICS, found)
        }

    def _average_precision(self, matched, weights):
        """`[IoUs]`, the mean of the interpolated precision; None without objects."""
        objects = weights @ matched.objects
        if not objects:
            return None
        counts = weights[matched.image]
        right, wrong = (np.cumsum(counts * x, axis=1) for x in (matched.right, matched.wrong))
        precision = right / np.maximum(right + wrong, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # Each of COCO's recalls takes the envelope where it is first reached, or 0: how many are.
        reached = np.searchsorted(self.recalls, right / objects, side="right")
        newly = np.diff(reached, axis=1, prepend=0)
        return (envelope * newly).sum(axis=1) / len(self.recalls)


def _matched(entries, ious):
    """`entries`: of every image what `COCOeval.evaluateImg` returned, None for nothing there."""
    images, scores = [np.empty(0, int)], [np.empty(0)]
    right, wrong = [np.empty((ious, 0), bool)], [np.empty((ious, 0), bool)]
    objects = np.zeros(len(entries))
    for place, entry in enumerate(entries):
        if entry is None:
            continue
        found, ignored = entry["dtMatches"] > 0, entry["dtIgnore"].astype(bool)
        images.append(np.full(found.shape[1], place))
        scores.append(np.array(entry["dtScores"], float))
        right.append(found & ~ignored)
        wrong.append(~found & ~ignored)
        objects[place] = (~np.array(entry["gtIgnore"], bool)).sum()
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return _Matched(
        np.concatenate(images)[order],
        np.concatenate(right, axis=1)[:, order],
        np.concatenate(wrong, axis=1)[:, order],
        objects,
    )
