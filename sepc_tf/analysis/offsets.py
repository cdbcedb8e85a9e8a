"""Where a scale-equalising convolution reads: its sampling positions drawn on an image.

The extra convolution of each task (SEPC and SEPC-lite) is plain at the finest level; above that it
moves the nine taps of the same kernel by offsets that it predicts (paper, section 4 and Fig. 6b).
An object is looked at in two sizes of the same image, each time at the cell that gives its class
the highest score.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from sepc_tf.analysis.page import write_png
from sepc_tf.data.images import read_image
from sepc_tf.data.preprocess import pad_to_multiple, preprocess_image
from sepc_tf.detectors.dense import pyramid_strides
from sepc_tf.errors import ConfigError, UserError
from sepc_tf.files import check_writable, write_json
from sepc_tf.inference import detect_images
from sepc_tf.layers.scale_equalizing_conv import ScaleEqualizingConv
from sepc_tf.necks.sepc import SEPC
from sepc_tf.optional import import_package
from sepc_tf.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = ("class", "box")
COLOURS = {"class": "#ff9d2e", "box": "#39b6ff"}
MIN_SCORE = 0.3


@dataclass(frozen=True)
class Sampling:
    """Where the extra convolutions read for one cell.

    Attributes:
        size: height and width of the network's input without padding, pixels.
        level: of the cell, 0 is the finest.
        stride: of the level, pixels of the network's input.
        cell: its row and column.
        score: of the object's class there, 0..1.
        plain: `[9][2]` x, y of the undeformed kernel's taps in pixels of the image.
        sampled: the same with the offsets, for each of `TASKS`.
        shift: mean length of an offset in cells, for each of `TASKS`.
    """

    size: tuple[int, int]
    level: int
    stride: int
    cell: tuple[int, int]
    score: float
    plain: list[list[float]]
    sampled: dict[str, list[list[float]]]
    shift: dict[str, float]

    @property
    def level_name(self) -> str:
        return f"P{self.stride.bit_length() - 1}"


def tap_positions(
    conv: ScaleEqualizingConv, x: tf.Tensor, cell: tuple[int, int], deform: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Where the taps of a 3 x 3 kernel read a map for one cell of its output.

    Args:
        conv: a deformable `ScaleEqualizingConv` of stride 1.
        x: `[1, H, W, C]`.
        cell: row and column of the output.
        deform: False at the finest level, where the offsets are zero.

    Returns:
        two `[taps, 2]` float64 of (row, column) of `x`: without and with the offsets.

    Example:
        >>> conv = ScaleEqualizingConv(4)
        >>> conv.build([(1, 8, 8, 2)])
        >>> plain, moved = tap_positions(conv, tf.zeros([1, 8, 8, 2]), (3, 5), True)
        >>> plain[0], np.array_equal(plain, moved)  # new offsets are zero
        (array([2., 4.]), True)
    """
    side = conv.kernel_size
    before = (side - 1) // 2 if conv.padding == "same" else 0
    taps = np.stack(np.meshgrid(range(side), range(side), indexing="ij"), axis=-1)
    plain = taps.reshape(-1, 2) - before + np.array(cell, np.float64)
    if not deform:
        return plain, plain
    offsets = np.asarray(conv.offset(x)[0, cell[0], cell[1]], np.float64)  # dy, dx of each tap
    return plain, plain + offsets.reshape(-1, 2)


def object_samplings(
    run: Run, image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, zoom: float = 1.0
) -> list[Sampling]:
    """Where the extra convolutions read for each of some objects.

    Of the cells whose centre lies in the box, on all levels, and of those at its centre, it is the
    one with the highest score of the class. A cell's centre is at `(index + 0.5) * stride`.

    Args:
        run: a `sepc_tf.runs.Run` of a detector with SEPC or SEPC-lite.
        image: `[H, W, 3]` uint8 RGB.
        boxes: `[n, 4]` xyxy in pixels of the image.
        classes: `[n]`, from 0.
        zoom: the network's input is so many times the size of that of the evaluation.

    Returns:
        list of `Sampling`.

    Raises:
        ConfigError: the head has no scale-equalising convolutions.

    Example:
        >>> [there] = object_samplings(run, image, np.array([[0, 0, 200, 200]]), np.array([0]))
        >>> np.shape(there.plain), np.shape(there.sampled["box"])
        ((9, 2), (9, 2))
    """
    detector, data = run.detector, run.config.data
    towers = detector.towers
    if not isinstance(towers, SEPC) or not towers.extra_deformable:
        raise ConfigError(
            "this detector has no scale-equalising convolutions, whose offsets could be drawn: "
            "expected detector.head.variant sepc_lite or sepc, got "
            f"{run.config.detector.head.variant}"
        )
    resized = preprocess_image(
        image[None],
        round(zoom * data.test_short_side),
        round(zoom * data.long_side),
        data.mean,
        data.std,
        data.channel_order,
    )
    size = tuple(int(n) for n in resized.shape[1:3])
    scale = np.array(size) / image.shape[:2]  # of y, x
    padded = pad_to_multiple(resized, data.size_divisor)
    features = towers.stacked(detector.pyramid(padded, training=False), training=False)
    logits = [np.asarray(x[0]) for x in detector(padded, training=False)["classification"]]
    strides = pyramid_strides(detector.necks)
    found = []
    for box, label in zip(np.asarray(boxes, float), classes):
        level, cell, score = _best_cell(logits, strides, box * [*scale[::-1], *scale[::-1]], label,
                                        detector.num_classes)  # fmt: skip
        sampled, shift = {}, {}
        for task, conv, maps in zip(TASKS, towers.extra_convs, features):
            plain, moved = tap_positions(conv, maps[level], cell, deform=level > 0)
            sampled[task] = _pixels(moved, strides[level], scale)
            shift[task] = float(np.linalg.norm(moved - plain, axis=1).mean())
        found.append(
            Sampling(
                size,
                level,
                strides[level],
                cell,
                score,
                _pixels(plain, strides[level], scale),
                sampled,
                shift,
            )
        )
    return found


def _best_cell(logits, strides, box, label, num_classes):
    """Level, cell and score of the highest logit of a class in a box in pixels of the input."""
    best = None
    for level, (scores, stride) in enumerate(zip(logits, strides)):
        height, width = scores.shape[:2]
        scores = scores.reshape(height, width, -1, num_classes)[..., label].max(axis=-1)
        ys, xs = ((np.arange(n) + 0.5) * stride for n in (height, width))
        inside = ((box[1] <= ys) & (ys <= box[3]))[:, None] & (box[0] <= xs) & (xs <= box[2])
        middle = [
            min(int(centre // stride), n - 1)
            for centre, n in zip(((box[1] + box[3]) / 2, (box[0] + box[2]) / 2), (height, width))
        ]
        inside[tuple(middle)] = True
        scores = np.where(inside, scores, -np.inf)
        cell = np.unravel_index(np.argmax(scores), scores.shape)
        if best is None or scores[cell] > best[2]:
            best = level, tuple(int(n) for n in cell), float(scores[cell])
    level, cell, logit = best
    return level, cell, float(1 / (1 + np.exp(-logit)))


def _pixels(positions, stride, scale):
    """(row, column) of a level as x, y in pixels of the image."""
    return ((positions + 0.5) * stride / scale)[:, ::-1].tolist()


def analyze_offsets(
    run: Run,
    image: str | Path | np.ndarray,
    out_dir: str | Path,
    zoom: float = 2.0,
    object_number: int | None = None,
) -> dict:
    """Writes `offsets.png` and `offsets.json`: the sampling positions of one object in two sizes.

    Args:
        run: a `sepc_tf.runs.Run` of a detector with SEPC or SEPC-lite.
        image: a path, or `[H, W, 3]` uint8 RGB.
        out_dir: where to; made when missing.
        zoom: how much larger the second size is.
        object_number: which of the detections, 1 is the best; by default the best that is found
            above the finest level in both sizes, on different levels, if there is one.

    Returns:
        What `offsets.json` holds.

    Raises:
        ConfigError: the head has no scale-equalising convolutions.
        UserError: nothing is detected, or there is no detection of this number.
        UnreadableImageError: the file cannot be read.
        MissingPackageError: matplotlib is not installed.
        OutputError: `out_dir` cannot be written to.

    Example, of a trained model:
        >>> from sepc_tf.runs import load_run, packaged_run
        >>> demo = load_run(packaged_run("demo"))
        >>> report = analyze_offsets(demo, "image.jpg", "analysis")  # doctest: +SKIP
        >>> report["samplings"][0]["level"] < report["samplings"][1]["level"]  # doctest: +SKIP
        True
    """
    import_package("matplotlib.figure", "matplotlib", "the figure of the offsets")
    out_dir = Path(out_dir)
    check_writable(out_dir)
    name = str(image) if isinstance(image, str | Path) else "the image"
    image = read_image(image) if isinstance(image, str | Path) else np.asarray(image)
    detections = detect_images(run.detector, run.config.data, image[None])
    boxes, scores, classes = (detections[key][0].numpy() for key in ("boxes", "scores", "classes"))
    count = int((scores >= MIN_SCORE).sum())  # best first
    if not count:
        raise UserError(
            f"{name}: nothing is detected there with a score of {MIN_SCORE} or more; give another"
        )
    if object_number is not None and not 1 <= object_number <= count:
        raise UserError(f"{name}: expected an object from 1 to {count}, got {object_number}")
    both = [object_samplings(run, image, boxes[:count], classes[:count], z) for z in (1.0, zoom)]
    chosen = _chosen(*both) if object_number is None else object_number - 1
    samplings = [found[chosen] for found in both]
    label, score = run.categories[classes[chosen]]["name"], float(scores[chosen])
    report = {
        "image": name,
        "object": {
            "number": chosen + 1,
            "name": label,
            "score": score,
            "box_xyxy": boxes[chosen].astype(float).tolist(),
        },
        "samplings": [asdict(sampling) for sampling in samplings],
    }
    write_json(out_dir / "offsets.json", report)
    title = f"{label} {score:.2f}"
    write_png(out_dir / "offsets.png", plot_offsets(image, boxes[chosen], title, samplings))
    return report


def _chosen(first, second):
    """The first object on two levels above the finest, else one above it in the second size."""
    for wanted in (
        lambda a, b: 0 < a.level < b.level,
        lambda a, b: a.level and b.level,
        lambda a, b: b.level,
    ):
        for number, pair in enumerate(zip(first, second)):
            if wanted(*pair):
                return number
    return 0


def plot_offsets(
    image: np.ndarray, box: np.ndarray, title: str, samplings: list[Sampling]
) -> Figure:
    """The image with the object, and for each task and size the taps around it.

    Args:
        image: `[H, W, 3]` uint8.
        box: `[4]` xyxy of the object in pixels of the image.
        title: over the image.
        samplings: of the object, in each size.
    """
    figure_module = import_package("matplotlib.figure", "matplotlib", "the figure of the offsets")
    figure = figure_module.Figure(figsize=(11, 7.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.1))
    axis = left.subplots()
    axis.imshow(image)
    _draw_box(axis, box)
    axis.set_title(title, fontsize=11)
    axis.set(xticks=[], yticks=[])

    points = np.array([p for s in samplings for p in (s.plain, *s.sampled.values())])
    centre = (box[:2] + box[2:]) / 2
    reach = 1.08 * max(np.abs(points - centre).max(), (box[2:] - box[:2]).max() / 2)
    panels = right.subplots(len(TASKS), len(samplings), squeeze=False)
    for task, row in zip(TASKS, panels):
        for axis, sampling in zip(row, samplings):
            axis.imshow(image, alpha=0.55)
            _draw_box(axis, box)
            _draw_taps(axis, np.array(sampling.plain), np.array(sampling.sampled[task]), task)
            axis.set(
                xlim=(centre[0] - reach, centre[0] + reach),
                ylim=(centre[1] + reach, centre[1] - reach),
                xticks=[],
                yticks=[],
                facecolor="#dddddd",
            )
            moved = (
                f"moved by {sampling.shift[task]:.1f} cells on average"
                if sampling.level
                else "finest level: a plain convolution"
            )
            axis.set_xlabel(moved, fontsize=9)
        row[0].set_ylabel(f"{task} convolution", fontsize=11)
    for axis, sampling in zip(panels[0], samplings):
        height, width = sampling.size
        axis.set_title(
            f"input of {width} x {height} px: {sampling.level_name} (stride {sampling.stride})",
            fontsize=10,
        )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    handles += panels[1, 0].get_legend_handles_labels()[0][1:]
    labels += panels[1, 0].get_legend_handles_labels()[1][1:]
    left.legend(handles, labels, loc="lower center", fontsize=9)
    return figure


def _draw_box(axis, box):
    axis.plot(box[[0, 2, 2, 0, 0]], box[[1, 1, 3, 3, 1]], color="#2fbf4f", linewidth=1.5)


def _draw_taps(axis, plain, sampled, task):
    for start, end in zip(plain, sampled):
        axis.plot(*zip(start, end), color="black", linewidth=1.2, zorder=2)
    style = {"linestyle": "none", "marker": "o", "markeredgecolor": "black", "zorder": 3}
    axis.plot(*plain.T, color="white", markersize=5, label="taps of a plain 3 x 3 kernel", **style)
    axis.plot(
        *sampled.T,
        color=COLOURS[task],
        markersize=8,
        label=f"taps of the {task} convolution",
        **style,
    )
