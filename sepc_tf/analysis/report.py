"""What is wrong with a detector: numbers, figures, and a page that shows both."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from sepc_tf.analysis import plots
from sepc_tf.analysis.confusion import confusion_matrix
from sepc_tf.analysis.groups import ap_by_aspect, ap_by_count, ap_by_size
from sepc_tf.analysis.hot import hotcoco_evaluation
from sepc_tf.analysis.matches import f1_curve, match, precision_curves
from sepc_tf.analysis.page import Page, jpeg_bytes, png_bytes
from sepc_tf.analysis.worst import draw_errors, worst_images
from sepc_tf.data.coco import CocoDataset
from sepc_tf.evaluation.coco import evaluate_detections
from sepc_tf.files import check_writable, replacing, write_json, write_text

IOUS = (0.5, 0.75, 0.9)
CALIBRATION_BINS = 10
NO_THRESHOLD = 0.5  # where nothing was detected


def analyze(
    dataset: CocoDataset,
    results: list[dict],
    out_dir: str | Path,
    title: str,
    iou_thresholds: tuple | list = (),
    worst: int = 12,
) -> dict:
    """Writes `analysis.html`, `analysis.json` and the page's pictures.

    AP is pycocotools' throughout; the confusion matrix, the error types, the calibration and the
    errors of each image are hotcoco's. What needs a score threshold takes the one of the best F1.

    Args:
        dataset: the `CocoDataset` with the truth.
        results: the detections, a list in COCO's result format; may be empty.
        out_dir: where to; made when missing.
        title: what was analysed.
        iou_thresholds: further overlaps at which AP is reported.
        worst: at most so many images are drawn.

    Returns:
        What `analysis.json` holds.

    Raises:
        MissingPackageError: hotcoco is not installed.
        OutputError: `out_dir` cannot be written to.

    Example:
        >>> report = analyze(dataset, [], "analysis", "nothing at all", worst=1)
        >>> report["metrics"]["AP"], report["errors"]["counts"]["Bkg"]
        (0.0, 0)
        >>> Path("analysis/analysis.html").is_file()
        True
    """
    out_dir = Path(out_dir)
    check_writable(out_dir)

    # ---- numbers -------------------------------------------------------------------------------
    metrics = evaluate_detections(dataset, results, iou_thresholds)
    matches = match(dataset, results)
    curve = f1_curve(matches)
    best = curve.best
    threshold = best["threshold"] if best else NO_THRESHOLD
    recalls, precision = precision_curves(dataset, results, IOUS)
    evaluation = hotcoco_evaluation(dataset, results)
    tide = evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)
    calibration = evaluation.calibration(n_bins=CALIBRATION_BINS, iou_threshold=0.5)
    matrix = confusion_matrix(dataset, [results[index] for index in matches.index], threshold)
    groups = {
        "size": ap_by_size(dataset, results),
        "aspect": ap_by_aspect(dataset, results),
        "crowding": ap_by_count(dataset, results),
    }
    images = worst_images(dataset, results, threshold, worst)
    classes = _classes(dataset, metrics, precision[0], matches)

    # ---- figures -------------------------------------------------------------------------------
    figures = {
        "precision_recall": plots.precision_recall(recalls, precision, IOUS, dataset.class_names),
        "f1": plots.f1_over_threshold(curve),
        "confusion": plots.confusion(matrix, dataset.class_names),
        "errors": plots.error_types(tide["delta_ap"], tide["counts"]),
        "groups": plots.groups(
            {
                "square root of the area, px": groups["size"],
                "width / height": groups["aspect"],
                "objects in the image": groups["crowding"],
            }
        ),
        "calibration": plots.reliability(calibration["bins"], calibration["ece"]),
    }
    pictures = {name: png_bytes(figure) for name, figure in figures.items()}
    photographs = []
    for errors in images:
        drawn = draw_errors(dataset, errors)
        if drawn is not None:
            photographs.append((errors, jpeg_bytes(drawn)))

    # ---- files ---------------------------------------------------------------------------------
    report = {
        "title": title,
        "data": {
            "name": dataset.name,
            "images": len(dataset),
            "objects": int(matches.objects.sum()),
        },
        "detections": len(results),
        "metrics": metrics.summary,
        "best_threshold": best,
        "classes": classes,
        "confusion": {
            "iou": 0.5,
            "threshold": threshold,
            "names": [*dataset.class_names, "background"],
            "matrix": matrix.tolist(),
        },
        "errors": {
            "iou": 0.5,
            "background_iou": 0.1,
            "ap50": tide["ap_base"],
            "gain": tide["delta_ap"],
            "counts": tide["counts"],
        },
        "groups": {
            name: [dataclasses.asdict(group) for group in members]
            for name, members in groups.items()
        },
        "calibration": {
            "ece": calibration["ece"],
            "bins": calibration["bins"],
        },
        "worst": [
            {
                "file": errors.image.file_name,
                "image_id": errors.image.image_id,
                "f1": errors.f1,
                "right": errors.right,
                "false": dict(errors.false_names),
                "missed": dict(errors.missed_names),
            }
            for errors in images
        ],
    }
    for name, contents in pictures.items():
        _write(out_dir / f"{name}.png", contents)
    for number, (_, contents) in enumerate(photographs, 1):
        _write(out_dir / f"worst_{number:02d}.jpg", contents)
    write_json(out_dir / "analysis.json", report)
    write_text(out_dir / "analysis.html", _page(report, pictures, photographs))
    return report


def _classes(dataset, metrics, precision, matches):
    rows = []
    for label, name in enumerate(dataset.class_names):
        best = f1_curve(matches.of_class(label)).best
        ap50 = precision[:, label].mean()
        rows.append(
            {
                "name": name,
                "objects": int(matches.objects[label]),
                "AP": metrics.per_class[name],
                "AP50": None if np.isnan(ap50) else float(ap50),
                "best_threshold": best if matches.objects[label] else None,
            }
        )
    return rows


def _page(report, pictures, photographs):
    data, errors, calibration = (report[name] for name in ("data", "errors", "calibration"))
    best, threshold = report["best_threshold"], report["confusion"]["threshold"]
    page = Page(
        f"Analysis of {report['title']}",
        f"{data['images']} images, {data['objects']} objects and {report['detections']} "
        f"detections; {data['name']}",
    )
    first = [name for name in report["metrics"] if name.startswith(("AP", "mAP"))]
    page.numbers({name: _percent(report["metrics"][name]) for name in first})

    page.section(
        "Errors",
        "Each false detection and each object that was not found has one cause. A detection has "
        "the wrong class (IoU with an object of another class at least 0.5), the wrong place (IoU "
        "with one of its class 0.1 to 0.5), both, is a duplicate of a better one, or lies on "
        "background (IoU below 0.1 with every object). Missed are the objects that none of these "
        f"accounts for. The left side says how much AP50, now {_percent(errors['ap50'])}, would "
        "grow if errors of one kind were mended and nothing else changed; gains do not add up.",
    )
    page.figure(pictures["errors"], "AP50 gained by mending each kind of error, and their numbers")

    page.section(
        "Classes",
        "AP as COCO has it, with AP at IoU 0.5, and the score threshold of the best F1 of each "
        "class.",
    )
    page.table(
        ["class", "objects", "AP", "AP50", "best F1", "at score", "precision", "recall"],
        [_class_row(item) for item in report["classes"] if item["objects"]],
    )
    unseen = [item["name"] for item in report["classes"] if not item["objects"]]
    if unseen:
        page.paragraph(f"Without objects here: {', '.join(unseen)}.")

    page.section(
        "Precision and recall", "The mean of a curve is the average precision, in the legend."
    )
    page.figure(pictures["precision_recall"], "precision over recall")
    page.section(
        "Score threshold",
        "Classes taken together, at IoU 0.5. "
        + (
            f"F1 is best, {_percent(best['f1'])}, for detections that score at least "
            f"{best['threshold']:.3f}: {_percent(best['precision'])} % of them are right, and they "
            f"find {_percent(best['recall'])} % of the objects."
            if best
            else "Nothing was detected."
        ),
    )
    page.figure(pictures["f1"], "precision, recall and F1 over the score threshold")

    page.section(
        "Confusion",
        f"Detections that score at least {threshold:.3f}, matched with objects at IoU 0.5 whatever "
        "their class. The row background has detections on nothing, the column background the "
        "objects not found.",
    )
    page.figure(pictures["confusion"], "confusion matrix")

    page.section(
        "Sizes, shapes, crowding",
        "AP of the objects of one group, the others ignored as COCO ignores them outside an area "
        "range; in brackets the number of objects.",
    )
    page.figure(pictures["groups"], "AP by size, shape and number of objects in the image")

    page.section(
        "Calibration",
        "How often a detection of a given score is right at IoU 0.5. Bars above the dotted "
        "line: scores are too low; below: too high. The expected calibration error, "
        f"{_percent(calibration['ece'])} %, is the distance from the line, weighted with the "
        "number of detections.",
    )
    page.figure(pictures["calibration"], "share of right detections over their score")

    page.section(
        "Worst images",
        f"The lowest F1 of detections that score at least {threshold:.3f}. Left the detections, "
        "right the truth.",
    )
    if not photographs:
        page.paragraph("There is none with an error that could be read.")
    for item, contents in photographs:
        page.photograph(contents, f"{item.image.file_name}: F1 {_percent(item.f1)}; {item.caption}")
    return page.html()


def _class_row(item):
    best = item["best_threshold"]
    row = [item["name"], str(item["objects"]), _percent(item["AP"]), _percent(item["AP50"])]
    if best is None:
        return [*row, "-", "-", "-", "-"]
    numbers = [_percent(best[name]) for name in ("precision", "recall")]
    return [*row, _percent(best["f1"]), f"{best['threshold']:.2f}", *numbers]


def _percent(value):
    return "-" if value is None or value < 0 else f"{100 * value:.1f}"


def _write(path, contents):
    with replacing(path, needed=len(contents)) as file:
        file.write(contents)
