"""Measures exported models beside each other: size, speed, average precision."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sepc_tf.benchmark.measure import environment, environment_line, interleaved
from sepc_tf.data.coco import CocoDataset
from sepc_tf.evaluation.run import evaluate_model
from sepc_tf.exported import ExportedModel
from sepc_tf.files import writing
from sepc_tf.optional import import_package
from sepc_tf.progress import track


def exported_speed(
    files: Sequence[tuple[str, str, Path]],
    dataset: CocoDataset,
    num_images: int = 8,
    repeats: int = 15,
    evaluate: bool = True,
) -> dict:
    """Size, time and AP of exported models.

    Each is run by its own runtime as `sepc-tf predict --model` runs it: one image at a time, with
    resizing and suppression. The models take turns, each with `num_images` images before the next.

    Args:
        files: format, precision and path of each; the first is compared with.
        dataset: of COCO's kind; its first images are timed, and all of them evaluated.
        num_images: images of a turn.
        repeats: turns of each.
        evaluate: whether AP is measured.

    Returns:
        A dict that `json` can write: `environment`, `num_images`, `repeats` and `rows`, a list of
        `format`, `precision`, `mb` (10^6 bytes), `ms` (median for an image), `ratio` (median over
        the turns of the time divided by the first model's), and `AP`, `AP50` and `AP75` or None.

    Example:
        >>> path = export(load_run("runs/demo"), "served")
        >>> row = exported_speed([("saved_model", "float32", path)], dataset, 1, 1)["rows"][0]
        >>> row["ratio"]
        1.0
    """
    report = {"environment": environment(), "num_images": num_images, "repeats": repeats}
    images = [record.read()[None] for record in dataset.images[:num_images]]
    models = [ExportedModel(path) for _, _, path in files]

    def turn(model):
        return lambda: [model.detect(image) for image in images]

    seconds = interleaved({path: turn(model) for (*_, path), model in zip(files, models)}, repeats)
    report["rows"] = []
    for (format, precision, path), model in track(list(zip(files, models)), description="AP"):
        row = {
            "format": format,
            "precision": precision,
            "mb": _size(path) / 1e6,
            "ms": float(np.median(seconds[path]) * 1e3 / len(images)),
            "ratio": float(np.median(seconds[path] / seconds[files[0][2]])),
        }
        ap = dict.fromkeys(("AP", "AP50", "AP75"))
        if evaluate:
            with tempfile.TemporaryDirectory() as folder:
                metrics = evaluate_model(model.detect, model.categories, dataset, folder)
            ap = {name: metrics.summary[name] for name in ap}
        report["rows"].append({**row, **ap})
    return report


def _size(path):
    """Bytes of a model without the JSON files that say what its classes are."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file() and f.suffix != ".json")


def exported_markdown(report: dict) -> str:
    """The report of `exported_speed` as the table of `docs/results/export.md`."""
    lines = [
        environment_line(report["environment"]),
        f"Medians of {report['repeats']} turns of {report['num_images']} images.",
        "",
        "| format | precision | MB | ms | ratio | AP | AP50 | AP75 |",
        "|" + " --- |" * 8,
    ]
    for row in report["rows"]:
        ap = ["" if row[n] is None else f"{100 * row[n]:.1f}" for n in ("AP", "AP50", "AP75")]
        lines.append(
            f"| {row['format']} | {row['precision']} | {row['mb']:.1f} | {row['ms']:.1f} "
            f"| {row['ratio']:.2f} | {' | '.join(ap)} |"
        )
    return "\n".join(lines)


def draw_exported(report: dict, path: Path) -> None:
    """Draws time against AP, the file's size as the area of a dot.

    Args:
        report: of `exported_speed` with AP.
        path: of the picture; matplotlib knows its kind from the suffix.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    plt = import_package("matplotlib.pyplot", "matplotlib", "the picture of exported models")
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for row in report["rows"]:
        name = f"{row['format']} {row['precision']}"
        point = axes.scatter(row["ratio"], 100 * row["AP"], s=40 * row["mb"], alpha=0.7, label=name)
        axes.scatter(row["ratio"], 100 * row["AP"], s=6, color=point.get_facecolor(), alpha=1)
    first = report["rows"][0]
    axes.set_xlabel(f"time of an image, {first['format']} {first['precision']} = 1")
    axes.set_ylabel("AP")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(title="area: size of the file", markerscale=0.5, fontsize="small")
    with writing(path):
        figure.savefig(path, dpi=120)
    plt.close(figure)
