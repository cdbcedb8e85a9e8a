"""The figures of an analysis, one function for each; all return a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sepc_tf.analysis.groups import Group
from sepc_tf.analysis.matches import F1Curve
from sepc_tf.optional import import_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, RED = "#2563a8", "#d9822b", "#8a8f98", "#b3382c"
MOST_CLASSES = 20  # of a confusion matrix that can be read
MOST_CURVES = 10
ERROR_NAMES = {
    "Cls": "class",
    "Loc": "place",
    "Both": "class and place",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


def precision_recall(
    recalls: np.ndarray, precision: np.ndarray, ious: Sequence[float], names: Sequence[str]
) -> Figure:
    """Precision over recall: at each overlap over all classes, and at the first of each class.

    Args:
        recalls: `[R]`.
        precision: `[ious, R, classes]`, NaN for a class without objects.
        ious: the overlaps.
        names: of the classes; of more than ten, those of the lowest precision have a name.

    Example:
        >>> recalls = np.linspace(0, 1, 101)
        >>> precision_recall(recalls, np.ones([1, 101, 2]), [0.5], ["cat", "dog"]).savefig("pr.png")
    """
    figure = _figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    seen = ~np.isnan(precision[0, 0])
    for number, iou in enumerate(ious):
        if seen.any():
            curve = precision[number][:, seen].mean(axis=1)
            colour = (BLUE, ORANGE, GREY)[number % 3]
            left.plot(
                recalls, curve, color=colour, label=f"IoU {iou:g}: AP {100 * curve.mean():.1f}"
            )
    left.set(title="all classes", xlabel="recall", ylabel="precision")
    order = [k for k in np.argsort(np.nanmean(np.where(seen, precision[0], 0), axis=0)) if seen[k]]
    named = order[:MOST_CURVES]
    for label in order[MOST_CURVES:]:
        right.plot(recalls, precision[0][:, label], color="#d0d3d8", linewidth=0.8)
    for place, label in enumerate(named):
        curve = precision[0][:, label]
        style = "-" if place < 5 else "--"
        text = f"{names[label]}: {100 * curve.mean():.1f}"
        right.plot(recalls, curve, style, color=f"C{place % 5}", linewidth=1.2, label=text)
    which = "classes" if len(order) <= MOST_CURVES else f"the {MOST_CURVES} worst classes"
    right.set(title=f"{which} at IoU {ious[0]:g}", xlabel="recall")
    for axis in (left, right):
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    if named:
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9, ncols=len(ious))
        right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, title="AP")
    return figure


def f1_over_threshold(curve: F1Curve) -> Figure:
    """Precision, recall and F1 over the score threshold, with the best F1 marked.

    Example:
        >>> point = np.array([0.5])
        >>> f1_over_threshold(F1Curve(point, point, point, point)).savefig("f1.png")
    """
    figure = _figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    for values, colour, name in (
        (curve.precision, GREY, "precision"),
        (curve.recall, ORANGE, "recall"),
        (curve.f1, BLUE, "F1"),
    ):
        axis.plot(curve.thresholds, values, color=colour, label=name)
    if best := curve.best:
        axis.axvline(best["threshold"], color=BLUE, linewidth=0.8, linestyle=":")
        axis.plot(best["threshold"], best["f1"], "o", color=BLUE)
        axis.set_title(f"best F1 {100 * best['f1']:.1f} at score {best['threshold']:.2f}")
    axis.set(xlim=(0, 1), ylim=(0, 1.05), xlabel="score threshold")
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """A confusion matrix: colour is the share of a row, the number is the count.

    Args:
        matrix: `[classes + 1, classes + 1]` counts: the row is the truth, the column what was
            detected, the last of each is background.
        names: of the classes; of more than 20, those with the most errors are shown.

    Example:
        >>> confusion(np.array([[9, 1], [2, 0]]), ["cat"]).savefig("confusion.png")
    """
    shown, names = _most_confused(matrix, [*names, "background"])
    size = len(shown)
    figure = _figure(figsize=(2.6 + 0.46 * size, 1.9 + 0.42 * size), layout="constrained")
    axis = figure.subplots()
    share = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1)
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(shown > 0):
        dark = share[row, column] > 0.55
        axis.text(
            column,
            row,
            str(shown[row, column]),
            ha="center",
            va="center",
            fontsize=8 if shown[row, column] < 10000 else 6,
            color="white" if dark else "black",
        )
    axis.set_xticks(range(size), names, rotation=90 if size > 6 else 0)
    axis.set_yticks(range(size), names)
    axis.set(xlabel="detected as", ylabel="truth")
    axis.axhline(size - 1.5, color="black", linewidth=0.8)
    axis.axvline(size - 1.5, color="black", linewidth=0.8)
    bar = figure.colorbar(picture, ax=axis, fraction=0.04, pad=0.02)
    bar.set_label("share of the row")
    bar.ax.yaxis.set_major_formatter(_matplotlib("ticker").PercentFormatter(1, decimals=0))
    return figure


def error_types(gains: dict[str, float], counts: dict[str, int]) -> Figure:
    """Two rows of bars: what mending each kind of error would gain, and how many there are.

    Args:
        gains: AP points in 0..1 by the names of `ERROR_NAMES`.
        counts: numbers by the same names.

    Example:
        >>> none = dict.fromkeys(ERROR_NAMES, 0)
        >>> error_types(none, none).savefig("errors.png")
    """
    figure = _figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names, places = list(ERROR_NAMES.values()), range(len(ERROR_NAMES))
    gained = [100 * gains[key] for key in ERROR_NAMES]
    bars = left.barh(places, gained, color=BLUE)
    left.bar_label(bars, [f"{value:.1f}" for value in gained], padding=3)
    numbers = [counts[key] for key in ERROR_NAMES]
    right.bar_label(right.barh(places, numbers, color=GREY), padding=3)
    left.set_yticks(places, names)
    left.invert_yaxis()
    left.set(title="AP50 gained if these were mended, points", xlim=(0, max(*gained, 1) * 1.15))
    right.set(title="how many there are", xlim=(0, max(*numbers, 1) * 1.15))
    for axis in (left, right):
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    return figure


def groups(panels: dict[str, list[Group]]) -> Figure:
    """AP and AP50 of each group, one panel for each way to group.

    Args:
        panels: groups by the title of their panel.

    Example:
        >>> groups({"size": [Group("below 16", 3, 0.4, 0.7)]}).savefig("groups.png")
    """
    figure = _figure(figsize=(11, 3.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axis, (title, members) in zip(axes, panels.items()):
        places = np.arange(len(members))
        for shift, values, colour, name in (
            (-0.2, [group.ap for group in members], BLUE, "AP"),
            (0.2, [group.ap50 for group in members], ORANGE, "AP50"),
        ):
            heights = [100 * (value or 0) for value in values]
            bars = axis.bar(places + shift, heights, 0.4, color=colour, label=name)
            axis.bar_label(bars, [f"{value:.0f}" for value in heights], fontsize=8, padding=1)
        names = [f"{group.name} ({group.objects})" for group in members]
        slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(places, names, fontsize=8, **slanted)
        axis.set(title=title, ylim=(0, 108))
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    axes[0].legend(loc="upper left", fontsize=8, ncols=2)
    return figure


def reliability(bins: list[dict], ece: float) -> Figure:
    """How often detections of a score are right, over how many there are.

    Args:
        bins: of equal width: dicts with `bin_lower`, `bin_upper`, `avg_confidence`, `avg_accuracy`
            and `count`.
        ece: the expected calibration error.

    Example:
        >>> one = {"bin_lower": 0, "bin_upper": 1, "count": 4}
        >>> one |= {"avg_confidence": 0.5, "avg_accuracy": 0.5}
        >>> reliability([one], 0.0).savefig("reliability.png")
    """
    figure = _figure(figsize=(6, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    used = [item for item in bins if item["count"]]
    left = [item["bin_lower"] for item in bins]
    width = bins[0]["bin_upper"] - bins[0]["bin_lower"]
    top.bar(
        [item["bin_lower"] for item in used],
        [item["avg_accuracy"] for item in used],
        width,
        align="edge",
        color=BLUE,
        edgecolor="white",
        label="share that is right",
    )
    top.plot(
        [item["avg_confidence"] for item in used],
        [item["avg_confidence"] for item in used],
        "o",
        color=RED,
        label="mean score of the bin",
    )
    top.plot([0, 1], [0, 1], ":", color=RED, linewidth=1)
    top.set(title=f"expected calibration error {100 * ece:.1f} %", ylim=(0, 1.02), xlim=(0, 1))
    top.legend(loc="best", fontsize=9)
    counts = [item["count"] for item in bins]
    bars = bottom.bar(left, counts, width, align="edge", color=GREY, edgecolor="white")
    bottom.bar_label(bars, fontsize=8)
    highest = 6 * max([*counts, 1])  # on a log axis, with room for the numbers
    bottom.set(xlabel="score", ylabel="detections", ylim=(0.5, highest))
    if any(counts):
        bottom.set_yscale("log")
    for axis in (top, bottom):
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    return figure


def _most_confused(matrix, names):
    """The matrix of the classes with the most errors, the rest of them added up as one."""
    matrix = np.asarray(matrix, np.int64)
    classes = len(names) - 1
    if classes <= MOST_CLASSES:
        return matrix, names
    off = matrix - np.diag(np.diag(matrix))
    wrong = (off.sum(axis=0) + off.sum(axis=1))[:classes]
    kept = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
    rest = np.setdiff1d(np.arange(classes), kept)
    picked = [*([k] for k in kept), rest, [classes]]
    merged = np.array([[matrix[np.ix_(a, b)].sum() for b in picked] for a in picked])
    return merged, [*(names[k] for k in kept), f"{len(rest)} others", names[-1]]


def _figure(**options) -> Figure:
    return _matplotlib("figure").Figure(**options)


def _matplotlib(module):
    return import_package(f"matplotlib.{module}", "matplotlib", "the report of an analysis")
