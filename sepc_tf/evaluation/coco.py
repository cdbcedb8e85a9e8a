"""COCO's own evaluation: pycocotools, original image ids, original scale, real annotations."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sepc_tf.files import write_json
from sepc_tf.ops.boxes import LAST_PIXEL

METRIC_NAMES = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)


@dataclass(frozen=True)
class CocoMetrics:
    """The twelve numbers of COCO's box evaluation, in 0..1; -1 where there is nothing to measure.

    Attributes:
        AP, AP50, AP75: average precision over IoU 0.50:0.05:0.95, at 0.50, at 0.75.
        APs, APm, APl: the first for objects of area < 32^2, 32^2..96^2, > 96^2 pixels.
        AR1, AR10, AR100: average recall with at most 1, 10, 100 detections an image.
        ARs, ARm, ARl: the last by area.
        per_class: dict from class name to AP, in label order; None for a class without objects.
        at_iou: dict from `mAP@<IoU>` to the average precision at that overlap, for the thresholds
            that were asked for.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    per_class: dict
    at_iou: dict = field(default_factory=dict)

    def to_dict(self):
        """The metrics as one flat dict that can be written as JSON, `per_class` nested in it."""
        return {**self.summary, "per_class": self.per_class}

    @property
    def summary(self):
        """dict of the twelve numbers and those of `at_iou`, without the classes."""
        return {**{name: getattr(self, name) for name in METRIC_NAMES}, **self.at_iou}

    def table(self):
        """The numbers of `summary` as a `rich.table.Table`."""
        from rich.table import Table

        table = Table(title="COCO box metrics")
        table.add_column("metric")
        table.add_column("%", justify="right")
        for name, value in self.summary.items():
            table.add_row(name, _percent(value))
        return table

    def class_table(self):
        """AP of every class as a `rich.table.Table`."""
        from rich.table import Table

        table = Table(title="AP per class")
        table.add_column("class")
        table.add_column("AP", justify="right")
        for name, value in self.per_class.items():
            table.add_row(name.replace("[", r"\["), _percent(value))
        return table


def to_coco_results(detections, dataset, convention="modern"):
    """Detections of a batch in COCO's result format.

    Args:
        detections: dict of arrays; B images, D detections each:
            `boxes` `[B, D, 4]`, xyxy in pixels of the original image; `scores` `[B, D]`; `classes`
            `[B, D]`, 0-based labels, -1 where padded; `image_ids` `[B]`, -1 for an image that is
            not to be counted. Further keys are ignored.
        dataset: the `CocoDataset` of the images.
        convention: of the detector; "modern" reports the width x2 - x1, "mmdet1" x2 - x1 + 1.

    Returns:
        A list of dicts `image_id`, `category_id`, `bbox` (x, y, width, height), `score`. Numbers
        are not rounded.

    Example:
        >>> results = []
        >>> for batch in pipeline.for_epoch():
        ...     sizes = batch["image_sizes"], pipeline.frame_sizes(batch)
        ...     detections = detector.detect(batch["images"], *sizes)
        ...     results += to_coco_results({**batch, **detections}, dataset, detector.convention)
    """
    boxes, scores, classes, image_ids = (
        np.asarray(detections[name]) for name in ("boxes", "scores", "classes", "image_ids")
    )
    results = []
    for number, image_id in enumerate(image_ids):
        if image_id < 0:
            continue
        kept = classes[number] >= 0
        corners = boxes[number, kept].astype(np.float64)
        sides = corners[:, 2:] - corners[:, :2] + LAST_PIXEL[convention]
        boxes_xywh = np.concatenate([corners[:, :2], sides], axis=1)
        results += [
            {
                "image_id": int(image_id),
                "category_id": int(dataset.category_ids[label]),
                "bbox": [float(value) for value in box],
                "score": float(score),
            }
            for box, score, label in zip(boxes_xywh, scores[number, kept], classes[number, kept])
        ]
    return results


def evaluate_detections(dataset, results, iou_thresholds: Sequence[float] = ()):
    """Runs COCO's box evaluation.

    Detections on crowd regions are neither right nor wrong, as COCO has it. All images of `dataset`
    count, those without detections too.

    Args:
        dataset: a `CocoDataset`.
        results: list in COCO's result format (`to_coco_results`, or a results file's content); may
            be empty.
        iou_thresholds: further overlaps, each of which gives a number `mAP@<IoU>`: the mean over
            classes of COCO's average precision at that one overlap.

    Returns:
        `CocoMetrics`.

    Raises:
        ValueError: a result belongs to no image or category of the data set.

    Example:
        >>> results = []
        >>> for image in dataset.images:  # the truth itself
        ...     for (x1, y1, x2, y2), label in zip(image.boxes.tolist(), image.labels):
        ...         results.append({"image_id": image.image_id, "score": 1.0,
        ...                         "category_id": dataset.category_ids[label],
        ...                         "bbox": [x1, y1, x2 - x1, y2 - y1]})
        >>> round(evaluate_detections(dataset, results).AP, 6)
        1.0
        >>> evaluate_detections(dataset, results, [0.33]).at_iou
        {'mAP@0.33': 1.0}
    """
    found = detections_as_coco(dataset, results)
    evaluation = accumulated(dataset, found)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    # Axes: IoU threshold, recall, class, area range (0: all), detections per image (-1: 100).
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for index, category_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        values = values[values > -1]
        name = dataset.class_names[dataset.category_ids.index(category_id)]
        per_class[name] = float(values.mean()) if values.size else None
    return CocoMetrics(
        **{name: float(value) for name, value in zip(METRIC_NAMES, evaluation.stats)},
        per_class=per_class,
        at_iou=_at_iou(dataset, found, iou_thresholds) if len(iou_thresholds) else {},
    )


def _at_iou(dataset, found, thresholds):
    evaluation = accumulated(dataset, found, iouThrs=np.array(thresholds, float), maxDets=[100])
    values = {}
    for threshold, precision in zip(thresholds, evaluation.eval["precision"][..., 0, -1]):
        measured = precision[precision > -1]
        values[f"mAP@{threshold:g}"] = float(measured.mean()) if measured.size else -1.0
    return values


def accumulated(dataset, found, **params):
    """A `pycocotools.cocoeval.COCOeval` of boxes after `evaluate` and `accumulate`.

    Args:
        dataset: a `CocoDataset`; all its images count.
        found: `detections_as_coco` of its detections.
        **params: attributes of `COCOeval.params` that differ from COCO's.

    Example:
        >>> evaluation = accumulated(dataset, detections_as_coco(dataset, []), maxDets=[100])
        >>> evaluation.eval["precision"].shape  # IoU, recall, class, area range, detections
        (10, 101, 10, 4, 1)
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(dataset.coco, found, "bbox")
        evaluation.params.imgIds = [image.image_id for image in dataset.images]
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def write_evaluation(directory, metrics, results):
    """Writes `metrics.json` and `detections.json`, each whole or not at all.

    Args:
        directory: where to; made when missing.
        metrics: `CocoMetrics`.
        results: list in COCO's result format; feeding `detections.json` to pycocotools again gives
            the same metrics.

    Example:
        >>> metrics = evaluate_detections(dataset, [])
        >>> write_evaluation("runs/demo/evaluation", metrics, [])
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "detections.json", results, indent=None)
    write_json(directory / "metrics.json", metrics.to_dict())


def detections_as_coco(dataset, results):
    """The detections as a `pycocotools.coco.COCO`; the id of `results[i]` is `i + 1`.

    Args:
        dataset: the `CocoDataset` of the images.
        results: list in COCO's result format; may be empty, and is left as it is.

    Raises:
        ValueError: a result belongs to no image or category of the data set.

    Example:
        >>> len(detections_as_coco(dataset, []).anns)
        0
    """
    from pycocotools.coco import COCO

    # `COCO.loadRes` fails on an empty list and writes into the list it is given.
    annotations = []
    image_ids = {image.image_id for image in dataset.images}
    categories = set(dataset.category_ids)
    for number, result in enumerate(results):
        if result["image_id"] not in image_ids or result["category_id"] not in categories:
            raise ValueError(
                f"results[{number}]: image_id {result['image_id']} or category_id "
                f"{result['category_id']} is not in {dataset.name}"
            )
        area = result["bbox"][2] * result["bbox"][3]
        annotations.append({**result, "id": number + 1, "area": area, "iscrowd": 0})
    found = COCO()
    found.dataset = {
        "images": dataset.coco.dataset["images"],
        "categories": dataset.coco.dataset["categories"],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found


def _percent(value):
    """A metric in percent, the way it is published; a dash where there is none."""
    return "-" if value is None or value < 0 else f"{100 * value:.1f}"
