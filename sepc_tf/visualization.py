"""Pictures: boxes on images, predictions beside ground truth."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

MIN_PICTURE_SIDE = 320  # smaller images are enlarged before they are drawn on
MASK_OPACITY = 0.45  # within its contour
PANEL_TITLE_HEIGHT = 22
GAP = 4


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray | Sequence,
    labels: np.ndarray | Sequence[int],
    scores: np.ndarray | Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    masks: Sequence[np.ndarray | None] | None = None,
) -> np.ndarray:
    """Draws boxes with class names and scores on an image, over translucent masks with contours.

    Each class has its colour. Lines and letters grow with the image, and small images (longer side
    below 320 px) are enlarged by a whole factor first, so that a picture can be read at any size.
    Names stay inside the image. The best score is drawn last, on top.

    Args:
        image: uint8 `[H, W, 3]` RGB.
        boxes: `[n, 4]`, xyxy in pixels of `image`.
        labels: `[n]` integers, 0-based; entries below 0 (padding) are not drawn.
        scores: `[n]` in 0..1; None draws names alone, as for ground truth.
        names: class name of every label; None shows the numbers.
        masks: n bool or 0/1 `[H, W]` masks, None for an object without; None draws boxes alone.

    Returns:
        uint8 `[k H, k W, 3]`, k = 1 unless the image is small.

    Raises:
        ValueError: shapes do not fit together.

    Example:
        >>> picture = draw_detections(image, [[10, 20, 200, 180]], [0], [0.93], ["cat"])
        >>> Image.fromarray(picture).save("cat.png")
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected uint8 [H, W, 3], got {image.dtype} {image.shape}")
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    labels = np.asarray(labels, np.int64).reshape(-1)
    shown_scores = None if scores is None else np.asarray(scores, np.float64).reshape(-1)
    for name, values in (("labels", labels), ("scores", shown_scores), ("masks", masks)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{name}: expected {len(boxes)}, one per box, got {len(values)}")

    factor = max(1, math.ceil(MIN_PICTURE_SIDE / max(image.shape[:2])))
    canvas = Image.fromarray(image)
    enlarged = (canvas.width * factor, canvas.height * factor)
    canvas = canvas.resize(enlarged, Image.Resampling.BICUBIC)
    side = math.sqrt(canvas.width * canvas.height)
    line = max(1, round(side / 260))
    font = _font(max(11, min(48, round(side / 38))))
    order = range(len(boxes)) if shown_scores is None else np.argsort(shown_scores, kind="stable")
    for index in order if masks is not None else []:
        if labels[index] >= 0 and masks[index] is not None:
            _draw_mask(canvas, masks[index], factor, class_colour(int(labels[index])), line)
    draw = ImageDraw.Draw(canvas)
    for index in order:
        label = int(labels[index])
        if label < 0:
            continue
        text = str(label) if names is None else str(names[label])
        if shown_scores is not None:
            text += f" {shown_scores[index]:.2f}"
        _draw_box(draw, canvas.size, boxes[index] * factor, text, class_colour(label), line, font)
    return np.asarray(canvas)


def one_per_object(
    boxes: np.ndarray | Sequence, scores: np.ndarray | Sequence[float], iou: float = 0.5
) -> np.ndarray:
    """Which boxes to draw so that each object has one, whatever classes it was taken for.

    From the best score down, a box is kept unless it overlaps a kept one by `iou` or more
    (intersection over union). Suppression within a class alone, as detectors do it, leaves one box
    for every class that an object resembles.

    Args:
        boxes: `[n, 4]`, xyxy.
        scores: `[n]`; of equal ones the earlier comes first.
        iou: overlap from which two boxes are taken for one object.

    Returns:
        bool `[n]`.

    Example:
        >>> one_per_object([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]], [0.6, 0.9, 0.5])
        array([False,  True,  True])
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    kept = np.zeros(len(boxes), bool)
    for index in np.argsort(-np.asarray(scores, np.float64), kind="stable"):
        kept[index] = not (_iou(boxes[index], boxes[kept]) >= iou).any()
    return kept


def _iou(box, others):
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.clip(sides, 0, None).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (box, others)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-12)


def prediction_grid(rows: Sequence[tuple], names: Sequence[str] | None = None) -> np.ndarray:
    """Predictions on the left, ground truth on the right, one image a row.

    Args:
        rows: list of (image, prediction, truth): uint8 `[H, W, 3]`; prediction a tuple (boxes,
            labels, scores), truth a tuple (boxes, labels), each with masks at the end where there
            are some, as in `draw_detections`.
        names: class name of every label.

    Returns:
        uint8 `[H', W', 3]`; shapes of the images may differ.

    Example:
        >>> truth, prediction = ([[10, 20, 90, 80]], [0]), ([[12, 20, 90, 80]], [0], [0.9])
        >>> grid = prediction_grid([(image, prediction, truth)])
        >>> Image.fromarray(grid).save("predictions.png")
    """
    if not rows:
        raise ValueError("rows: expected at least one image, got none")
    pictures = [
        (
            draw_detections(image, boxes, labels, scores, names, *masks),
            draw_detections(image, true_boxes, true_labels, None, names, *true_masks),
        )
        for (
            image,
            (boxes, labels, scores, *masks),
            (true_boxes, true_labels, *true_masks),
        ) in rows
    ]
    width = max(left.shape[1] for left, _ in pictures)
    height = PANEL_TITLE_HEIGHT + sum(left.shape[0] + GAP for left, _ in pictures)
    canvas = Image.new("RGB", (2 * width + GAP, height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(("prediction", "ground truth")):
        draw.text((column * (width + GAP) + 4, 3), title, fill="black", font=_font(14))
    top = PANEL_TITLE_HEIGHT
    for pair in pictures:
        for column, picture in enumerate(pair):
            canvas.paste(Image.fromarray(picture), (column * (width + GAP), top))
        top += pair[0].shape[0] + GAP
    return np.asarray(canvas)


def class_colour(label: int) -> tuple[int, int, int]:
    """The colour of a class, (red, green, blue) in 0..255: neighbouring labels differ clearly."""
    # Steps of the golden ratio around the circle of hues never come close to one another.
    hue = (0.02 + label * 0.61803398875) % 1.0
    value = (1.0, 0.8)[label // 8 % 2]
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, value))


def _draw_mask(canvas, mask, factor, colour, line):
    """Tints the pixels of a mask, and draws its contour inside of it."""
    mask = np.asarray(mask, np.uint8)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return
    top, left = int(rows[0]), int(columns[0])
    window = Image.fromarray(255 * mask[top : rows[-1] + 1, left : columns[-1] + 1])
    window = window.resize(
        (window.width * factor, window.height * factor), Image.Resampling.NEAREST
    )
    # With a rim of zeros, so that the contour closes where the object touches its window.
    framed = Image.new("L", (window.width + 2 * line, window.height + 2 * line))
    framed.paste(window, (line, line))
    within = framed.filter(ImageFilter.MinFilter(2 * line + 1))
    within = within.crop((line, line, line + window.width, line + window.height))
    opacity = np.where(np.asarray(within) > 0, MASK_OPACITY, 1.0) * np.asarray(window)
    canvas.paste(colour, (left * factor, top * factor), Image.fromarray(opacity.astype(np.uint8)))


def _draw_box(draw, size, box, text, colour, line, font):
    width, height = size
    # Into the picture, and never thinner than a pixel: Pillow refuses inverted rectangles.
    x1, y1 = np.clip(box[:2], 0, (width - 1, height - 1))
    x2, y2 = np.clip(box[2:], (x1, y1), (width - 1, height - 1))
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)

    margin = max(1, line)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    tag_width, tag_height = right - left + 2 * margin, bottom - top + 2 * margin
    # Above the box; inside it when there is no room; always within the picture.
    tag_x = min(max(x1, 0), max(width - tag_width, 0))
    tag_y = y1 - tag_height if y1 >= tag_height else min(y1, max(height - tag_height, 0))
    draw.rectangle((tag_x, tag_y, tag_x + tag_width, tag_y + tag_height), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.text(
        (tag_x + margin - left, tag_y + margin - top),
        text,
        fill="black" if luminance > 140 else "white",
        font=font,
    )


@functools.lru_cache
def _font(size):
    return ImageFont.load_default(size)  # Pillow's own; what the system has is unknown
