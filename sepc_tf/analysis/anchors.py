"""Anchors for a data set: how well those of a config lie on its boxes, and better ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from sepc_tf.config import Config
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.config import DataConfig
from sepc_tf.detectors.anchor_based import AnchorOptions
from sepc_tf.detectors.dense import pyramid_strides
from sepc_tf.errors import ConfigError
from sepc_tf.ops.anchors import AnchorGenerator
from sepc_tf.ops.boxes import LAST_PIXEL
from sepc_tf.zoo import build_necks

FOUND_IOU = 0.5
OCTAVE_BASES = 2.0 ** (np.arange(-12, 49) / 12)  # half a stride to 16 strides
SIZES_OF_A_RANGE = 5  # of data.short_side_mode: range
FITTED_BOXES = 20_000  # at most; of more, so many are drawn


@dataclass(frozen=True)
class Boxes:
    """Boxes as the network sees them.

    Attributes:
        xyxy: `[n, 4]` float64, pixels of the resized image.
        sizes: `[n, 2]` float64, height and width of the resized image of each.
    """

    xyxy: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Fit:
    """How well anchors lie on boxes.

    Attributes:
        options: the `AnchorOptions`.
        mean_iou: mean over boxes of the IoU with the best anchor.
        recall: share of boxes whose best anchor has an IoU of at least 0.5.
    """

    options: AnchorOptions
    mean_iou: float
    recall: float


@dataclass(frozen=True)
class AnchorReport:
    """The anchors of a config and those fitted to its training data.

    Attributes:
        now, fitted: a `Fit` of each, of all boxes.
        boxes: the boxes.
    """

    now: Fit
    fitted: Fit
    boxes: Boxes

    def text(self) -> str:
        """The numbers, and the fitted anchors as lines of a config."""
        sides = np.sqrt((self.boxes.xyxy[:, 2:] - self.boxes.xyxy[:, :2]).prod(1))
        low, middle, high = np.percentile(sides, [5, 50, 95])
        options = self.fitted.options
        lines = [
            f"{len(sides)} boxes as the network sees them; square root of the area {middle:.0f} px "
            f"(5 % below {low:.0f}, 5 % above {high:.0f})",
            f"{'':9}mean best IoU   boxes with IoU >= {FOUND_IOU}",
        ]
        for name, fit in (("now", self.now), ("fitted", self.fitted)):
            lines.append(f"{name:9}{fit.mean_iou:13.3f}   {100 * fit.recall:15.1f} %")
        lines += [
            "",
            "detector:",
            "  options:",
            "    anchors:",
            f"      octave_base: {options.octave_base:g}",
            f"      scales_per_octave: {options.scales_per_octave}",
            f"      ratios: [{', '.join(f'{ratio:g}' for ratio in options.ratios)}]",
        ]
        if self.now.options.scales:
            lines.append("      scales: null")
        return "\n".join(lines)


def fit_anchors(dataset: CocoDataset, config: Config, seed: int = 0) -> AnchorReport:
    """Fits octave base and ratios of a config's anchors to the boxes of a data set.

    The number of anchors of a cell stays. Ratios are the centres of a k-means of log(height /
    width), or stay as they are where that is better; the octave base is the one of a grid of
    twelfths of an octave whose anchors have the highest mean best IoU.

    Args:
        dataset: the `CocoDataset` to train on. Its boxes are taken as resizing leaves them, without
            the random changes of `data.augmentation`.
        config: a `Config`, of a detector with anchors.
        seed: of the drawing of boxes, where there are more than 20 000.

    Raises:
        ConfigError: the detector has no anchors.
        DatasetError: there is no box.

    Example:
        >>> report = fit_anchors(dataset, config)
        >>> report.fitted.mean_iou >= report.now.mean_iou
        True
    """
    options = getattr(config.detector.options, "anchors", None)
    if options is None:
        raise ConfigError(
            f"detector.type: {config.detector.type} has no anchors to fit: no setting "
            "detector.options.anchors"
        )
    dataset.check_trainable()
    boxes = resized_boxes(dataset, config.data)
    strides = pyramid_strides(build_necks(config.detector.necks, config.detector.head.filters))

    def generator(options):
        return options.generator(strides, config.detector.convention)

    def measured(options, boxes):
        ious = best_ious(boxes, generator(options), config.data.size_divisor)
        return Fit(options, float(ious.mean()), float((ious >= FOUND_IOU).mean()))

    drawn = boxes
    if len(boxes.xyxy) > FITTED_BOXES:
        rows = np.random.default_rng(seed).choice(len(boxes.xyxy), FITTED_BOXES, replace=False)
        drawn = Boxes(boxes.xyxy[rows], boxes.sizes[rows])
    scales = len(options.scales) if options.scales else options.scales_per_octave
    candidates = [
        dataclasses.replace(
            options,
            octave_base=float(f"{base:.3g}"),
            scales_per_octave=scales,
            scales=None,
            ratios=ratios,
        )
        for ratios in (_clustered_ratios(drawn, len(options.ratios)), options.ratios)
        for base in OCTAVE_BASES
    ]
    best = max((measured(item, drawn) for item in candidates), key=lambda fit: fit.mean_iou)
    now, fitted = measured(options, boxes), measured(best.options, boxes)
    return AnchorReport(now, fitted if fitted.mean_iou > now.mean_iou else now, boxes)


def resized_boxes(dataset: CocoDataset, data: DataConfig) -> Boxes:
    """The boxes of a data set in the images that a training shows: once for each size.

    Args:
        dataset: a `CocoDataset`.
        data: its `short_side`, `short_side_mode` and `long_side`.

    Example:
        >>> float(resized_boxes(dataset, config.data).sizes.max())
        64.0
    """
    sides = data.short_side
    if data.short_side_mode == "range":
        sides = np.linspace(*sides, SIZES_OF_A_RANGE)
    images = [image for image in dataset.images if len(image.boxes)]
    xyxy = np.concatenate([image.boxes for image in images]).astype(float)
    counts = [len(image.boxes) for image in images]
    original = np.repeat([(image.height, image.width) for image in images], counts, axis=0)
    resized = []
    for side in sides:
        scale = np.minimum(side / original.min(1), data.long_side / original.max(1))
        resized.append(np.maximum(np.floor(original * scale[:, None] + 0.5), 1))
    factors = [(size / original)[:, [1, 0, 1, 0]] for size in resized]
    return Boxes(np.concatenate([xyxy * factor for factor in factors]), np.concatenate(resized))


def best_ious(boxes: Boxes, generator: AnchorGenerator, divisor: int = 32) -> np.ndarray:
    """The IoU of every box with the best anchor of its image.

    Of the anchors of one level and shape, the one whose centre is nearest to the box's has the
    highest IoU, so one is computed for each level and shape.

    Args:
        boxes: `Boxes`.
        generator: the `AnchorGenerator`.
        divisor: image sides are padded to multiples of it.

    Returns:
        `[n]` float64.

    Example:
        >>> boxes = Boxes(np.array([[-12., -12., 20., 20.]]), np.array([[64., 64.]]))
        >>> best_ious(boxes, AnchorGenerator(strides=(8,)))
        array([1.])
    """
    last = LAST_PIXEL[generator.convention]
    low, high = boxes.xyxy[:, :2], boxes.xyxy[:, 2:]
    area = (high - low + last).prod(1)
    padded = np.ceil(boxes.sizes[:, ::-1] / divisor) * divisor  # width, height
    best = np.zeros(len(area))
    for stride in generator.strides:
        cells = np.ceil(padded / stride)
        for anchor in generator.cell_anchors(stride).astype(float):
            steps = np.round(((low + high) - (anchor[:2] + anchor[2:])) / (2 * stride))
            shift = stride * np.clip(steps, 0, cells - 1)
            shared = np.minimum(high, anchor[2:] + shift) - np.maximum(low, anchor[:2] + shift)
            shared = np.maximum(shared + last, 0).prod(1)
            anchor_area = (anchor[2:] - anchor[:2] + last).prod()
            best = np.maximum(best, shared / (area + anchor_area - shared))
    return best


def _clustered_ratios(boxes, count):
    """Centres of a k-means of log(height / width), as ratios, rounded to two digits."""
    sides = boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]
    values = np.log(sides[:, 1] / sides[:, 0])
    centres = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(100):
        nearest = np.abs(values[:, None] - centres).argmin(1)
        moved = [
            values[nearest == k].mean() if (nearest == k).any() else centres[k]
            for k in range(count)
        ]
        if np.allclose(moved, centres):
            break
        centres = np.array(moved)
    return [float(f"{ratio:.2g}") for ratio in np.exp(centres)]
