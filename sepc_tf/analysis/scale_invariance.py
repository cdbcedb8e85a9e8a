"""Remark 1 of the paper, measured: PConv extracts scale-invariant features from a Gaussian pyramid.

One scene is photographed twice, the second time twice as large, by a camera with the same blur (in
pixels). In a Gaussian pyramid each level is blurred just enough to look as sharp as the level below
before it is subsampled, so level l + 1 of the large picture is level l of the small one, and so is
every response of a PConv, which applies the same kernels at each level. Without the blur, or with
one that grows with the level as in the feature pyramid of a network (paper, Fig. 6b), it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from sepc_tf.analysis.page import write_png
from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.files import check_writable, write_json
from sepc_tf.layers.pconv import PConv
from sepc_tf.optional import import_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAMERA_BLUR = 1.0  # variance in pixels of every picture
# What is blurred away between two levels, in multiples of the variance that a level has. A Gaussian
# pyramid adds 3: the variance is then four times as large, and the same again after subsampling.
ADDED_BLUR = {"gaussian": 3, "subsampled": 0, "growing": 15}
TITLES = {
    "gaussian": "Gaussian pyramid",
    "subsampled": "subsampled without blur",
    "growing": "blur grows with the level",
}
FRINGE = 3  # cells at each side that see the padding


@dataclass(frozen=True)
class Change:
    """The response of a PConv to a picture, and to one twice as large a level above.

    Attributes:
        level: of the small picture's pyramid.
        small, large: `[H, W, channels]`, the response there and that of the large picture at level
            `level + 1`, without the fringe.
        inputs: the two input maps of the same place, `[H, W]`.
    """

    level: int
    small: np.ndarray
    large: np.ndarray
    inputs: tuple[np.ndarray, np.ndarray]

    @property
    def relative(self) -> float:
        """`|large - small| / |small|`."""
        return float(np.linalg.norm(self.large - self.small) / np.linalg.norm(self.small))


def gaussian_blur(image: np.ndarray, variance: float) -> np.ndarray:
    """Convolution of `[H, W]` with a Gaussian, zero outside the image."""
    if variance == 0:
        return image
    radius = int(np.ceil(5 * np.sqrt(variance)))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-(offsets**2) / (2 * variance))
    kernel /= kernel.sum()
    for axis in (0, 1):
        image = np.apply_along_axis(
            lambda row: np.convolve(row, kernel)[radius:-radius], axis, image
        )
    return image


def scene(size: int = 513, seed: int = 0) -> np.ndarray:
    """Squares of many sizes on fine noise: detail at every scale; `[size, size]`."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal([size, size])
    for _ in range(60):
        side = int(2 ** rng.uniform(2, 7))
        y, x = rng.integers(0, size - side, 2)
        image[y : y + side, x : x + side] += rng.standard_normal() * 2
    return image


def photograph(content: np.ndarray, pixel: int) -> np.ndarray:
    """Samples the scene at every `pixel`-th point through the camera's blur."""
    return gaussian_blur(content, CAMERA_BLUR * pixel**2)[::pixel, ::pixel]


def image_pyramid(image: np.ndarray, num_levels: int, kind: str) -> list[tf.Tensor]:
    """Levels of half the size each, as `[1, H, W, 1]` tensors; `kind` is one of `ADDED_BLUR`."""
    levels, variance = [image], CAMERA_BLUR
    for _ in range(num_levels - 1):
        blur = ADDED_BLUR[kind] * variance
        levels.append(gaussian_blur(levels[-1], blur)[::2, ::2])
        variance = (variance + blur) / 4  # in pixels of the new level
    return [tf.constant(level[None, ..., None].astype(np.float32)) for level in levels]


def changes_one_level_up(kind: str, deformable: bool = False) -> list[Change]:
    """How the response of a PConv of random kernels changes when the picture is twice as large.

    Args:
        kind: of the pyramid: "gaussian", "subsampled" (not blurred) or "growing" (blurred more the
            higher the level).
        deformable: whether the PConv is scale-equalising (its offsets are still zero).

    Returns:
        list of `Change`, for the levels that have all three terms of a PConv.

    Example:
        >>> max(change.relative for change in changes_one_level_up("gaussian")) < 1e-3
        True
    """
    content = scene()
    small = image_pyramid(photograph(content, 8), 4, kind)  # 65, 33, 17, 9 pixels
    large = image_pyramid(photograph(content, 4), 5, kind)  # 129, 65, 33, 17, 9 pixels
    pconv = PConv(8, deformable=deformable, normalization=None)
    pconv.build([x.shape for x in small])
    rng = np.random.default_rng(1)
    for path, variable in named_variables(pconv).items():
        if path.endswith("kernel") and "offset" not in path:
            variable.assign(rng.standard_normal(variable.shape).astype(np.float32))
    inside = slice(FRINGE, -FRINGE)
    responses, enlarged = (
        [y.numpy()[0, inside, inside] for y in pconv(pyramid)] for pyramid in (small, large)
    )
    return [
        Change(
            level,
            responses[level],
            enlarged[level + 1],
            tuple(x.numpy()[0, inside, inside, 0] for x in (small[level], large[level + 1])),
        )
        for level in (1, 2)
    ]


def analyze_scale_invariance(out_dir: str | Path) -> dict[str, list[float]]:
    """Writes `scale_invariance.png` and `scale_invariance.json`: Remark 1 of the paper.

    Args:
        out_dir: where to; made when missing.

    Returns:
        `|change| / |response|` at each level with all terms, by the kind of pyramid.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OutputError: `out_dir` cannot be written to.

    Example:
        >>> found = analyze_scale_invariance("analysis")
        >>> max(found["gaussian"]) < 0.001 < 0.1 < min(found["growing"])
        True
    """
    import_package("matplotlib.figure", "matplotlib", "the figure of scale invariance")
    out_dir = Path(out_dir)
    check_writable(out_dir)
    found = {kind: changes_one_level_up(kind) for kind in ADDED_BLUR}
    numbers = {kind: [change.relative for change in found[kind]] for kind in found}
    write_json(out_dir / "scale_invariance.json", numbers)
    write_png(
        out_dir / "scale_invariance.png",
        plot_changes({kind: changes[0] for kind, changes in found.items()}),
    )
    return numbers


def plot_changes(changes: dict[str, Change]) -> Figure:
    """One row for each kind of pyramid: both pictures, a channel of both responses, the difference.

    Args:
        changes: by the kind of pyramid.

    Example:
        >>> [first, second] = changes_one_level_up("growing")
        >>> plot_changes({"growing": first}).savefig("growing.png")
    """
    figure_module = import_package("matplotlib.figure", "matplotlib", "the figure")
    figure = figure_module.Figure(figsize=(10, 2.35 * len(changes)), layout="constrained")
    rows = figure.subplots(len(changes), 5, squeeze=False)
    for axes, (kind, change) in zip(rows, changes.items()):
        channel = int(np.argmax(np.var(change.small, axis=(0, 1))))
        small, large = change.small[..., channel], change.large[..., channel]
        limit = max(np.max(np.abs(change.inputs[0])), np.max(np.abs(change.inputs[1])))
        highest = max(small.max(), large.max())
        for axis, picture, (low, high), colours in (
            (axes[0], change.inputs[0], (-limit, limit), "gray"),
            (axes[1], change.inputs[1], (-limit, limit), "gray"),
            (axes[2], small, (0, highest), "viridis"),
            (axes[3], large, (0, highest), "viridis"),
            (axes[4], large - small, (-highest / 2, highest / 2), "RdBu_r"),
        ):
            axis.imshow(picture, cmap=colours, vmin=low, vmax=high)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0].set_ylabel(TITLES[kind], fontsize=10)
        axes[4].set_xlabel(f"change: {_percent(change.relative)}", fontsize=10)
    level = next(iter(changes.values())).level
    titles = (
        f"picture, level {level}",
        f"twice as large,\nlevel {level + 1}",
        "response of PConv",
        "response,\ntwice as large",
        "difference\n(colours: half the range)",
    )
    for axis, title in zip(rows[0], titles):
        axis.set_title(title, fontsize=10)
    return figure


def _percent(value):
    return f"{100 * value:.0f} %" if value >= 0.01 else f"{100 * value:.2g} %"
