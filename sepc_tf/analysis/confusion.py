"""Which classes are taken for which, and for nothing."""

from __future__ import annotations

import numpy as np

from sepc_tf.analysis.hot import hotcoco_evaluation
from sepc_tf.data.coco import CocoDataset


def confusion_matrix(
    dataset: CocoDataset, results: list[dict], threshold: float, iou: float = 0.5
) -> np.ndarray:
    """Counts objects by their class and the class they were detected as.

    In each image the detections, best first, are matched with the objects that they overlap most,
    whatever the classes.

    Args:
        dataset: a `CocoDataset`.
        results: list in COCO's result format, without those that COCO ignores because they lie on
            crowd regions (`Matches.index` names the others): here they would lie on background.
        threshold: lower scores do not count.
        iou: least overlap of a match.

    Returns:
        `[classes + 1, classes + 1]` int64: row label of the truth, column label of the detection;
        the last row has detections that match nothing, the last column objects not found.

    Raises:
        MissingPackageError: hotcoco is not installed.

    Example:
        >>> int(confusion_matrix(dataset, [], 0.5)[:, -1].sum()) == len(dataset.coco.anns)
        True
    """
    evaluation = hotcoco_evaluation(dataset, results)
    found = evaluation.confusion_matrix(iou_thr=iou, min_score=threshold)
    order = [found["cat_ids"].index(number) for number in dataset.category_ids]
    order.append(len(order))
    return np.array(found["matrix"], np.int64)[np.ix_(order, order)]
