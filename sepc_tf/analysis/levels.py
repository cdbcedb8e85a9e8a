"""How alike the levels of a pyramid are: the correlation matrices of the paper's Fig. 2.

The paper shows the matrix of RetinaNet before and after FPN and does not say what is correlated.
Here it is where the features are strong: of each level the mean of `|x|` over the channels, so that
maps of different numbers of channels, as those of a backbone, can be compared; resized bilinearly
to the finest level of the same pyramid; Pearson's correlation of two levels over the pixels of one
image, without its padding; the mean over the images.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from sepc_tf.analysis.page import write_png
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.preprocess import pad_to_multiple, preprocess_image
from sepc_tf.detectors.dense import DenseDetector, backbone_maps, pyramid_strides
from sepc_tf.errors import UnreadableImageError, UserError
from sepc_tf.files import check_writable, write_json
from sepc_tf.ops.resize import resize_bilinear
from sepc_tf.optional import import_package
from sepc_tf.progress import track
from sepc_tf.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Where on the way: {"names": ["P3", ...], "matrix": [levels, levels] of numbers or None}.
Stages = dict[str, dict]


def strengths(pyramid: Sequence[tf.Tensor], size: tuple | None = None) -> np.ndarray:
    """Where the features of each level are strong, on the grid of the finest level.

    Args:
        pyramid: list of `[1, H_l, W_l, C_l]` maps, finest first.
        size: the share of height and width, from the top left, that is no padding; all by default.

    Returns:
        `[levels, H_0, W_0]` float32: the mean of `|x|` over the channels, resized.

    Example:
        >>> strengths([tf.ones([1, 4, 6, 3]), -2 * tf.ones([1, 2, 3, 5])])[:, 0, 0]
        array([1., 2.], dtype=float32)
    """
    maps = []
    for x in pyramid:
        height, width = (
            max(1, round(share * side)) for share, side in zip(size or (1, 1), x.shape[1:3])
        )
        strength = tf.reduce_mean(tf.abs(x[:, :height, :width]), axis=-1, keepdims=True)
        strength = tf.cast(strength, tf.float32)
        maps.append(resize_bilinear(strength, maps[0].shape[1:3]) if maps else strength)
    return np.concatenate([strength[..., 0] for strength in maps])


def correlation(maps: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each pair of maps over their pixels.

    `r_ij = sum_p (a_i(p) - mean a_i) (a_j(p) - mean a_j) / (|a_i - mean a_i| |a_j - mean a_j|)`

    Args:
        maps: `[levels, H, W]`.

    Returns:
        `[levels, levels]` float64; NaN in the row and column of a map without variation.

    Example:
        >>> correlation(np.array([[[1, 2, 3]], [[6, 4, 2]]])).round(3)
        array([[ 1., -1.],
               [-1.,  1.]])
    """
    rows = np.reshape(maps, [len(maps), -1]).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1)
    products = np.outer(norms, norms)
    return rows @ rows.T / np.where(products > 0, products, np.nan)


def level_correlations(run: Run, images: Iterable[np.ndarray]) -> Stages:
    """The correlation matrix of the levels at each station of a detector.

    Args:
        run: a `sepc_tf.runs.Run`.
        images: `[H, W, 3]` uint8 RGB, resized as in the evaluation.

    Returns:
        dict from the station (`backbone`, the name of each neck, `class features`, `box features`:
        what the final convolutions get) to `names` of the levels and `matrix`, the mean over the
        images as nested lists; None where a level never varies.

    Example:
        >>> stages = level_correlations(run, [image])
        >>> list(stages), stages["fpn"]["names"]
        (['backbone', 'fpn', 'class features', 'box features'], ['P3', 'P4', 'P5', 'P6', 'P7'])
    """
    data, detector = run.config.data, run.detector
    matrices = {}
    for image in images:
        resized = preprocess_image(
            image[None],
            data.test_short_side,
            data.long_side,
            data.mean,
            data.std,
            data.channel_order,
        )
        padded = pad_to_multiple(resized, data.size_divisor)
        size = tuple(n / padded_n for n, padded_n in zip(resized.shape[1:3], padded.shape[1:3]))
        for name, pyramid in _pyramids(detector, padded).items():
            matrices.setdefault(name, []).append(correlation(strengths(pyramid, size)))
    names = _level_names(detector)
    return {
        name: {"names": names[name], "matrix": _mean(np.array(found))}
        for name, found in matrices.items()
    }


def _pyramids(detector: DenseDetector, images):
    maps = backbone_maps(list(detector.backbone(images, training=False)), detector.necks)
    found = {"backbone": maps}
    for neck in detector.necks:
        maps = found[neck.name] = neck(maps, training=False)
    found["class features"], found["box features"] = detector.towers(maps, training=False)
    return found


def _level_names(detector):
    necks = detector.necks
    names = {"backbone": [f"C{level}" for level in range(necks[0].min_level, 6)]}
    for number, neck in enumerate(necks, 1):
        strides = pyramid_strides(necks[:number])
        names[neck.name] = [f"P{stride.bit_length() - 1}" for stride in strides]
    of_towers = names[necks[-1].name]
    return {**names, "class features": of_towers, "box features": of_towers}


def _mean(matrices):
    """The mean over images, of each entry over those where it is a number."""
    counted = np.isfinite(matrices)
    sums = np.where(counted, matrices, 0.0).sum(axis=0)
    counts = counted.sum(axis=0)
    return [
        [float(total / count) if count else None for total, count in zip(*row)]
        for row in zip(sums, counts)
    ]


def analyze_levels(
    runs: dict[str, Run], dataset: CocoDataset, out_dir: str | Path, limit: int = 50
) -> dict[str, Stages]:
    """Writes `levels.png` and `levels.json`: `level_correlations` of one run or several.

    Args:
        runs: by the name that the figure gives them.
        dataset: whose first images are taken, for all runs the same.
        out_dir: where to; made when missing.
        limit: at most so many images; those that cannot be read are left out.

    Returns:
        What `levels.json` has under `runs`.

    Raises:
        UserError: none of the images can be read.
        MissingPackageError: matplotlib is not installed.
        OutputError: `out_dir` cannot be written to.

    Example:
        >>> runs = {"mine": run}
        >>> found = analyze_levels(runs, dataset, "analysis", limit=50)  # doctest: +SKIP
    """
    import_package("matplotlib.figure", "matplotlib", "the figure of the levels")
    out_dir = Path(out_dir)
    check_writable(out_dir)
    images = []
    for record in dataset.images[:limit]:
        try:
            images.append(record.read())
        except UnreadableImageError:
            continue
    if not images:
        raise UserError(f"{dataset.name}: none of its first {limit} images can be read")
    found = {
        name: level_correlations(run, track(images, description=name)) for name, run in runs.items()
    }
    write_json(out_dir / "levels.json", {"images": len(images), "runs": found})
    write_png(out_dir / "levels.png", plot_levels(found))
    return found


def plot_levels(runs: dict[str, Stages]) -> Figure:
    """One row of matrices for each run, the finest level at the top left.

    Args:
        runs: `level_correlations` by name.

    Example:
        >>> stages = {"backbone": {"names": ["C3", "C4"], "matrix": [[1, 0.5], [0.5, 1]]}}
        >>> plot_levels({"mine": stages}).savefig("levels.png")
    """
    columns = max(len(stages) for stages in runs.values())
    figure_module = import_package("matplotlib.figure", "matplotlib", "the figure of the levels")
    figure = figure_module.Figure(figsize=(1 + 2.5 * columns, 3 * len(runs)), layout="constrained")
    rows = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
    axes = []
    for row, (run_name, stages) in zip(rows, runs.items()):
        row.suptitle(run_name, fontsize=11, fontweight="bold")
        axes.append(row.subplots(1, columns, squeeze=False)[0])
        for axis in axes[-1][len(stages) :]:
            axis.axis("off")
        for axis, (stage, found) in zip(axes[-1], stages.items()):
            values = np.array(found["matrix"], float)
            picture = axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
            for i, j in itertools.product(range(len(values)), repeat=2):
                known = np.isfinite(values[i, j])
                dark = known and abs(values[i, j]) > 0.6
                axis.text(
                    j,
                    i,
                    f"{values[i, j]:.2f}" if known else "-",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
            ticks = range(len(values))
            axis.set_xticks(ticks, found["names"])
            axis.set_yticks(ticks, found["names"])
            axis.set_title(stage, fontsize=10)
        bar = row.colorbar(picture, ax=axes[-1], fraction=0.03, pad=0.01)
        bar.set_label("correlation")
    return figure
