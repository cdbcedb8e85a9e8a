"""COCO's own evaluation: pycocotools, original image ids, original scale, real annotations.

Boxes are always measured; masks, COCO's "segm", where the detector has them, and their numbers are
those of boxes with `segm/` in front: `AP` is of boxes, `segm/AP` of masks.
"""

import contextlib
import dataclasses
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sepc_tf.data.segmentations import encode_mask, segmentation_fault
from sepc_tf.files import write_json
from sepc_tf.ops.boxes import LAST_PIXEL
from sepc_tf.ops.paste import paste_mask

logger = logging.getLogger(__name__)

SEGM = "segm/"  # in front of the names of the numbers of masks
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
    """The twelve numbers of COCO's evaluation, in 0..1; -1 where there is nothing to measure.

    Attributes:
        AP, AP50, AP75: average precision over IoU 0.50:0.05:0.95, at 0.50, at 0.75.
        APs, APm, APl: the first for objects of area < 32^2, 32^2..96^2, > 96^2 pixels.
        AR1, AR10, AR100: average recall with at most 1, 10, 100 detections an image.
        ARs, ARm, ARl: the last by area.
        per_class: dict from class name to AP, in label order; None for a class without objects.
        at_iou: dict from `mAP@<IoU>` to the average precision at that overlap, for the thresholds
            that were asked for.
        segm: the `CocoMetrics` of masks beside those of boxes; None where masks are not measured.
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
    segm: "CocoMetrics | None" = None

    def to_dict(self):
        """The metrics as one flat dict that can be written as JSON.

        `per_class` is nested in it, and those of masks have `segm/` in front of their names.
        """
        metrics = {**self.summary, "per_class": self.per_class}
        return {**metrics, f"{SEGM}per_class": self.segm.per_class} if self.segm else metrics

    @property
    def summary(self):
        """dict of the twelve numbers and those of `at_iou`, then of masks, without the classes."""
        numbers = {**{name: getattr(self, name) for name in METRIC_NAMES}, **self.at_iou}
        masks = self.segm.summary if self.segm else {}
        return {**numbers, **{f"{SEGM}{name}": value for name, value in masks.items()}}

    def table(self):
        """The numbers of `summary` as a `rich.table.Table`, masks in a column beside boxes."""
        numbers = self.summary
        return self._table(
            "COCO metrics, %",
            "metric",
            {name: value for name, value in numbers.items() if not name.startswith(SEGM)},
            {name.removeprefix(SEGM): value for name, value in numbers.items()},
        )

    def class_table(self):
        """AP of every class as a `rich.table.Table`."""
        masks = self.segm.per_class if self.segm else {}
        return self._table("AP per class, %", "class", self.per_class, masks)

    def _table(self, title, of, boxes, masks):
        from rich.table import Table

        table = Table(title=title)
        table.add_column(of)
        for column in ("box", "mask") if self.segm else ("box",):
            table.add_column(column, justify="right")
        for name, value in boxes.items():
            cells = [_percent(value)] + ([_percent(masks[name])] if self.segm else [])
            table.add_row(name.replace("[", r"\["), *cells)
        return table


def to_coco_results(detections, dataset, convention="modern"):
    """Detections of a batch in COCO's result format.

    Args:
        detections: dict of arrays; B images, D detections each:
            `boxes` `[B, D, 4]`, xyxy in pixels of the original image; `scores` `[B, D]`; `classes`
            `[B, D]`, 0-based labels, -1 where padded; `image_ids` `[B]`, -1 for an image that is
            not to be counted. Of a detector with masks also `masks` `[B, D, n, n]`, probabilities
            in the boxes, and `original_sizes` `[B, 2]`, height and width of the original images.
            Further keys are ignored.
        dataset: the `CocoDataset` of the images.
        convention: of the detector; "modern" reports the width x2 - x1, "mmdet1" x2 - x1 + 1.

    Returns:
        A list of dicts `image_id`, `category_id`, `bbox` (x, y, width, height), `score`, and with
        masks `segmentation`, COCO's compressed RLE. Numbers are not rounded.

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
        if "masks" in detections:
            masks = np.asarray(detections["masks"][number])[kept]
            size = (int(side) for side in detections["original_sizes"][number])
            rles = encode_detections(masks, boxes[number, kept], *size, convention)
            for result, rle in zip(results[len(results) - len(rles) :], rles):
                result["segmentation"] = rle
    return results


def encode_detections(masks, boxes, height, width, convention="modern"):
    """The masks of one image's detections as COCO's compressed RLE.

    Args:
        masks: `[D, n, n]`, probabilities in the boxes.
        boxes: `[D, 4]`, xyxy in pixels of the image, in the convention.
        height, width: of the image, pixels.
        convention: of the detector.

    Returns:
        A list of D dicts, see `sepc_tf.data.segmentations.encode_mask`.

    Example:
        >>> encode_detections(np.ones([1, 28, 28]), np.array([[0, 0, 2, 2]]), 3, 3)
        [{'size': [3, 3], 'counts': '02103'}]
    """
    return [
        encode_mask(paste_mask(mask, box, height, width, convention))
        for mask, box in zip(masks, boxes)
    ]


def evaluate_detections(dataset, results, iou_thresholds: Sequence[float] = (), masks=False):
    """Runs COCO's evaluation of boxes, and of masks.

    Detections on crowd regions are neither right nor wrong, as COCO has it. All images of `dataset`
    count, those without detections too. The sizes of COCO's ranges of areas are the annotations'
    own; for detections, which matter there as false positives, those of the boxes, also where masks
    are measured. So does pycocotools with results that have both, and so did mmdetection 1; tools
    that leave the boxes away get other APs, APm and APl for masks, and the same AP.

    Where masks are measured an object without a usable segmentation is a region to be ignored, its
    box, like a crowd. Where no object has one there are no metrics of masks, and the log says so.

    Args:
        dataset: a `CocoDataset`.
        results: list in COCO's result format (`to_coco_results`, or a results file's content); may
            be empty.
        iou_thresholds: further overlaps, each of which gives a number `mAP@<IoU>`: the mean over
            classes of COCO's average precision at that one overlap.
        masks: whether the results have masks, and these are measured too.

    Returns:
        `CocoMetrics`.

    Raises:
        ValueError: a result belongs to no image or category of the data set, or has no mask.

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
    metrics = _metrics(dataset, found, None, iou_thresholds)
    if not masks:
        return metrics
    for number, result in enumerate(results):
        if not result.get("segmentation"):
            raise ValueError(f"results[{number}] has no segmentation; masks cannot be measured")
    truth = mask_truth(dataset)
    if truth is None:
        logger.warning(
            "%s: its annotations have no segmentations, so masks are not measured", dataset.name
        )
        return metrics
    return dataclasses.replace(metrics, segm=_metrics(dataset, found, truth, iou_thresholds))


def _metrics(dataset, found, truth, iou_thresholds):
    """`CocoMetrics` of boxes, or of masks where `truth` has them (see `accumulated`)."""
    evaluation = accumulated(dataset, found, truth)
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
        at_iou=_at_iou(dataset, found, truth, iou_thresholds) if len(iou_thresholds) else {},
    )


def _at_iou(dataset, found, truth, thresholds):
    evaluation = accumulated(
        dataset, found, truth, iouThrs=np.array(thresholds, float), maxDets=[100]
    )
    values = {}
    for threshold, precision in zip(thresholds, evaluation.eval["precision"][..., 0, -1]):
        measured = precision[precision > -1]
        values[f"mAP@{threshold:g}"] = float(measured.mean()) if measured.size else -1.0
    return values


def accumulated(dataset, found, truth=None, **params):
    """A `pycocotools.cocoeval.COCOeval` after `evaluate` and `accumulate`.

    Args:
        dataset: a `CocoDataset`; all its images count.
        found: `detections_as_coco` of its detections.
        truth: None measures boxes; `mask_truth` of the data set measures masks.
        **params: attributes of `COCOeval.params` that differ from COCO's.

    Example:
        >>> evaluation = accumulated(dataset, detections_as_coco(dataset, []), maxDets=[100])
        >>> evaluation.eval["precision"].shape  # IoU, recall, class, area range, detections
        (10, 101, 10, 4, 1)
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        if truth is None:
            evaluation = COCOeval(dataset.coco, found, "bbox")
        else:
            evaluation = COCOeval(truth, found, "segm")
        evaluation.params.imgIds = [image.image_id for image in dataset.images]
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def mask_truth(dataset):
    """The annotations as a `pycocotools.coco.COCO` whose segmentations can all be read.

    Args:
        dataset: a `CocoDataset`.

    Returns:
        The annotations of its images; one without a usable segmentation is a crowd that fills its
        box. None where none has one.

    Example:
        >>> truth = mask_truth(dataset)
        >>> len(truth.anns) == len(dataset.coco.anns)
        True
    """
    annotations, usable = [], 0
    for image in dataset.images:
        for annotation in dataset.coco.imgToAnns[image.image_id]:
            annotation = dict(annotation)  # pycocotools writes into it
            if segmentation_fault(annotation.get("segmentation"), image.height, image.width):
                x, y, width, height = annotation["bbox"]
                left, right = np.clip([x, x + width], 0, image.width).tolist()
                top, bottom = np.clip([y, y + height], 0, image.height).tolist()
                corners = [left, top, right, top, right, bottom, left, bottom]
                annotation |= {"segmentation": [corners], "iscrowd": 1}
            else:
                usable += 1
            annotations.append(annotation)
    return _as_coco(dataset, annotations) if usable else None


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
        results: list in COCO's result format, with masks or without; may be empty, and is left as
            it is.

    Raises:
        ValueError: a result belongs to no image or category of the data set.

    Example:
        >>> len(detections_as_coco(dataset, []).anns)
        0
    """
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
    return _as_coco(dataset, annotations)


def _as_coco(dataset, annotations):
    """A `pycocotools.coco.COCO` of the images and categories of a data set."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": dataset.coco.dataset["images"],
        "categories": dataset.coco.dataset["categories"],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _percent(value):
    """A metric in percent, the way it is published; a dash where there is none."""
    return "-" if value is None or value < 0 else f"{100 * value:.1f}"
