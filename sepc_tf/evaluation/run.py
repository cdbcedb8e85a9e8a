"""Evaluating a detector on a data set: batches in, COCO metrics, files and pictures out."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.pipeline import BatchPipeline
from sepc_tf.data.segmentations import decode_mask, segmentation_fault
from sepc_tf.errors import DatasetError, UnreadableImageError
from sepc_tf.evaluation.coco import (
    SEGM,
    CocoMetrics,
    evaluate_detections,
    to_coco_results,
    write_evaluation,
)
from sepc_tf.evaluation.origin import detections_origin
from sepc_tf.files import check_writable, write_json
from sepc_tf.progress import track
from sepc_tf.visualization import prediction_grid

log = logging.getLogger(__name__)

PICTURES = 8  # images of predictions beside ground truth, per evaluation
PICTURE_SCORE = 0.3  # predictions below are not drawn


class Evaluator:
    """Evaluates one detector as often as asked, tracing its graph once.

    Args:
        detector: a `sepc_tf.detectors.Detector`.
        dataset: the `CocoDataset` that holds the truth.
        pipeline: the `BatchPipeline` over it, made with `training=False`.
        strategy: the `tf.distribute.Strategy` to run on; the current one by default.
        iou_thresholds: further overlaps that AP is reported at, see `evaluate_detections`.

    Example:
        >>> evaluator = Evaluator(detector, dataset, evaluation_pipeline(dataset, config))
        >>> 0.0 <= evaluate_detections(dataset, evaluator.detections()).AP <= 1.0
        True
    """

    def __init__(
        self, detector, dataset, pipeline, strategy=None, iou_thresholds: Sequence[float] = ()
    ):
        self.detector = detector
        self.dataset = dataset
        self.pipeline = pipeline
        self.strategy = strategy or tf.distribute.get_strategy()
        self.iou_thresholds = iou_thresholds
        self._detect = tf.function(self._detect_batch, autograph=False, reduce_retracing=True)

    def detections(self):
        """Returns all detections as a list in COCO's result format."""
        results = []
        batches = self.strategy.experimental_distribute_dataset(self.pipeline.for_epoch())
        for batch in track(batches, self.pipeline.steps_per_epoch, "evaluating"):
            outputs = {name: value.numpy() for name, value in self._detect(batch).items()}
            results += to_coco_results(outputs, self.dataset, self.pipeline.convention)
        return results

    def evaluate_and_log(self, writer, step):
        """Evaluates, and writes the metrics and some pictures for TensorBoard.

        Args:
            writer: a `tf.summary` file writer.
            step: the training step.

        Returns:
            dict of the 12 COCO numbers and those of `iou_thresholds`, of boxes and of masks
            (`CocoMetrics.summary`).
        """
        results = self.detections()
        metrics = evaluate_detections(
            self.dataset, results, self.iou_thresholds, self.detector.needs_masks
        )
        with writer.as_default(step=step):
            for name, value in metrics.summary.items():
                tf.summary.scalar(f"coco/{name}", value)
            for prefix, measured in (("", metrics), (SEGM, metrics.segm)):
                for name, value in (measured.per_class if measured else {}).items():
                    if value is not None:
                        tf.summary.scalar(f"coco_per_class/{prefix}{name}", value)
            for index, picture in enumerate(self.pictures(results)):
                tf.summary.image(f"predictions_left_truth_right/{index}", picture[None])
        writer.flush()
        return metrics.summary

    def pictures(self, results):
        """Draws predictions (left) beside the ground truth (right) for the first images.

        Args:
            results: what `detections` returned.

        Returns:
            list of `[height, width, 3]` uint8 images.
        """
        label_of = {number: label for label, number in enumerate(self.dataset.category_ids)}
        pictures = []
        for record in self.dataset.images[:PICTURES]:
            try:
                image = record.read()
            except UnreadableImageError:
                continue  # the pipeline has named it
            shown = [
                result
                for result in results
                if result["image_id"] == record.image_id and result["score"] >= PICTURE_SCORE
            ]
            boxes = np.array([result["bbox"] for result in shown], np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = [label_of[result["category_id"]] for result in shown]
            prediction = [boxes, labels, [result["score"] for result in shown]]
            truth = [record.boxes, record.labels]
            if self.detector.needs_masks:
                size = (record.height, record.width)
                prediction.append([decode_mask(r["segmentation"], *size) for r in shown])
                truth.append(
                    [
                        None if segmentation_fault(s, *size) else decode_mask(s, *size)
                        for s in record.segmentations
                    ]
                )
            row = (image, prediction, truth)
            pictures.append(prediction_grid([row], names=self.dataset.class_names))
        return pictures

    def _detect_batch(self, batch):
        def detect(batch):
            detections = self.detector.detect(
                batch["images"], batch["image_sizes"], self.pipeline.frame_sizes(batch)
            )
            of_images = {name: batch[name] for name in ("image_ids", "original_sizes")}
            return {**detections, **of_images}

        outputs = self.strategy.run(detect, args=(batch,))
        if self.strategy.num_replicas_in_sync == 1:
            return outputs
        return {name: self.strategy.gather(value, axis=0) for name, value in outputs.items()}


def evaluate_run(
    run, dataset: CocoDataset, pipeline: BatchPipeline, out_dir: str | Path
) -> CocoMetrics:
    """Evaluates a trained detector; writes `metrics.json`, `detections.json` and `origin.json`.

    The last says what the detections came from (`sepc_tf.evaluation.origin`). Beside COCO's numbers
    AP is measured at the overlaps of `evaluation.iou_thresholds` of the run's config.

    Args:
        run: a `sepc_tf.runs.Run`; all devices of its strategy take part.
        dataset: the `CocoDataset` with the truth.
        pipeline: the `BatchPipeline` over it, made with `training=False` and `run.batch_size`.
        out_dir: where the files go.

    Returns:
        `CocoMetrics`.

    Raises:
        DatasetError: the data set's categories are not those the detector was trained for.
        OutputError: `out_dir` cannot be written to, found before the work starts.
    """
    _check_categories(run.categories, dataset)
    check_writable(out_dir)
    results = Evaluator(run.detector, dataset, pipeline, run.strategy).detections()
    iou_thresholds, masks = run.config.evaluation.iou_thresholds, run.detector.needs_masks
    metrics = _written(dataset, results, iou_thresholds, out_dir, masks)
    origin = detections_origin(run.config.detector, run.config.data, run.checkpoint, dataset)
    write_json(Path(out_dir) / "origin.json", origin)
    return metrics


def evaluate_model(
    detect: Callable[[np.ndarray], dict[str, np.ndarray]],
    categories: list[dict],
    dataset: CocoDataset,
    out_dir: str | Path,
    iou_thresholds: Sequence[float] = (),
) -> CocoMetrics:
    """Evaluates an exported detector, image by image; writes `metrics.json`, `detections.json`.

    Boxes are evaluated, masks are not.

    Args:
        detect: `detect` of a `sepc_tf.exported.ExportedModel`.
        categories: its categories.
        dataset, out_dir, iou_thresholds: as in `evaluate_run` and `evaluate_detections`. Images
            that cannot be read are named and count as images without detections.

    Returns:
        `CocoMetrics`.

    Raises:
        DatasetError: the data set's categories are not those of the model.
        OutputError: `out_dir` cannot be written to, found before the work starts.

    Example:
        >>> from sepc_tf.exported import ExportedModel
        >>> model = ExportedModel(export(load_run("runs/demo"), "served"))
        >>> evaluate_model(model.detect, model.categories, dataset, "evaluation").AP <= 1.0
        True
    """
    _check_categories(categories, dataset)
    check_writable(out_dir)
    results = []
    for record in track(dataset.images, description="evaluating"):
        try:
            image = record.read()
        except UnreadableImageError as error:
            log.warning("skipped: %s", error)
            continue
        # Whatever the detector's convention, the width of these boxes is x2 - x1.
        detections = {**detect(image[None]), "image_ids": [record.image_id]}
        results += to_coco_results(detections, dataset)
    return _written(dataset, results, iou_thresholds, out_dir)


def _check_categories(categories, dataset):
    trained = [category["id"] for category in categories]
    if trained != list(dataset.category_ids):
        raise DatasetError(
            f"{dataset.name} has category ids {list(dataset.category_ids)}, the detector was "
            f"trained for {trained}"
        )


def _written(dataset, results, iou_thresholds, out_dir, masks=False):
    """The metrics of detections, written with them in place of earlier ones."""
    metrics = evaluate_detections(dataset, results, iou_thresholds, masks)
    out_dir = Path(out_dir)
    (out_dir / "origin.json").unlink(missing_ok=True)  # of earlier detections
    write_evaluation(out_dir, metrics, results)
    return metrics
