"""Segmentations of COCO annotations, polygons or run lengths (RLE), and the pixels they stand for.

A segmentation is what stands under that key in an annotation file: a list of polygons, each a flat
list x1, y1, x2, y2, ... in pixels, whose union is the object; or a dict of `size` (height, width)
and `counts`, the lengths of runs of zeros and ones down the columns, as a list or in COCO's
compressed text.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

MISSING = "segmentation missing"
FEW_POINTS = "polygon of fewer than three points"
ODD_POLYGON = "polygon with an odd number of coordinates"
OTHER_SIZE = "RLE of another size than its image"
BROKEN = "broken segmentation"
OUTSIDE_BOX = "mask outside its box"
FAULTS = (MISSING, FEW_POINTS, ODD_POLYGON, OTHER_SIZE, BROKEN, OUTSIDE_BOX)
# A mask is outside when less than this share of its own tight box lies in the annotated box.
SHARE_INSIDE = 0.5
# Times the longer side of the image: pycocotools walks along a polygon in fifths of a pixel.
FARTHEST = 10


def segmentation_fault(segmentation, height: int, width: int) -> str:
    """Why a segmentation stands for no mask; "" if it does.

    Args:
        segmentation: of an annotation; None where there is none.
        height, width: of the image, pixels.

    Returns:
        `MISSING`, `FEW_POINTS`, `ODD_POLYGON`, `OTHER_SIZE`, `BROKEN` or "".

    Example:
        >>> segmentation_fault([[0, 0, 5, 0, 5, 5]], 10, 10)
        ''
        >>> segmentation_fault([[0, 0, 5, 0, 5, 5], [1, 1, 2, 2]], 10, 10)
        'polygon of fewer than three points'
        >>> segmentation_fault({"size": [9, 10], "counts": [90]}, 10, 10)
        'RLE of another size than its image'
    """
    if not segmentation:
        return MISSING
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, height, width)
    if not isinstance(segmentation, list):
        return BROKEN
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
            return BROKEN
        if len(polygon) % 2:
            return ODD_POLYGON
        if len(polygon) < 6:
            return FEW_POINTS
        if max(map(abs, polygon)) > FARTHEST * max(height, width):
            return BROKEN
    return ""


def mask_fault(segmentation, box, height: int, width: int) -> str:
    """Why an object has no mask to learn from; "" if it has.

    Args:
        segmentation: of its annotation; None where there is none.
        box: xyxy, pixels of the image.
        height, width: of the image.

    Returns:
        What `segmentation_fault` says, or `OUTSIDE_BOX` for a mask that would teach the contrary
        of its box: less than `SHARE_INSIDE` of the mask's own tight box, cut to the image, lies in
        `box`.

    Example:
        >>> triangle = [[0, 0, 5, 0, 5, 5]]
        >>> mask_fault(triangle, (0, 0, 5, 5), 20, 20)
        ''
        >>> mask_fault(triangle, (10, 10, 15, 15), 20, 20)
        'mask outside its box'
    """
    fault = segmentation_fault(segmentation, height, width)
    if fault:
        return fault
    left, top, right, bottom = _tight_box(segmentation, height, width)
    area = max(right - left, 0) * max(bottom - top, 0)
    shared_width = max(min(right, box[2]) - max(left, box[0]), 0)
    shared_height = max(min(bottom, box[3]) - max(top, box[1]), 0)
    inside = area > 0 and shared_width * shared_height >= SHARE_INSIDE * area
    return "" if inside else OUTSIDE_BOX


def encode_mask(mask: np.ndarray) -> dict:
    """A mask as COCO's compressed RLE, ready for JSON.

    Args:
        mask: bool or 0/1 `[H, W]`.

    Returns:
        dict of `size` [H, W] and `counts`, a str.

    Example:
        >>> encode_mask(np.eye(3, dtype=bool))
        {'size': [3, 3], 'counts': '013000'}
    """
    from pycocotools import mask as mask_utils

    rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(segmentation, height: int, width: int) -> np.ndarray:
    """The pixels of a segmentation, as pycocotools has them.

    Args:
        segmentation: without a fault (`segmentation_fault`).
        height, width: of the image, pixels.

    Returns:
        uint8 `[height, width]` of 0 and 1.

    Example:
        >>> decode_mask([[1, 0, 3, 0, 3, 2, 1, 2]], 3, 4)
        array([[0, 1, 1, 0],
               [0, 1, 1, 0],
               [0, 0, 0, 0]], dtype=uint8)
    """
    from pycocotools import mask as mask_utils

    if isinstance(segmentation, dict):
        return mask_utils.decode(_compressed(segmentation))
    parts = mask_utils.frPyObjects(segmentation, height, width)
    return mask_utils.decode(mask_utils.merge(parts))


def training_mask(
    segmentation,
    original_size: tuple[int, int],
    window: tuple[int, int, int, int],
    place: tuple[int, int],
    canvas_size: tuple[int, int],
    size: tuple[int, int],
    flip: bool,
    convention: str = "modern",
) -> np.ndarray:
    """The mask of an object in the training image that its image became.

    In "modern" polygons are moved and scaled, and rasterised at the size of the training image (by
    pycocotools, which rounds corners to fifths of a pixel, towards zero: those left of or above the
    image the other way than those in it). RLE, and everything in "mmdet1", is rasterised at the
    size of the file's image, moved, and resized to the nearest pixel: the one at
    `floor((i + 0.5) s)` in "modern", at `floor(i s)` in "mmdet1", which is OpenCV's
    `INTER_NEAREST`, where s is the canvas's side over the new one. Mirroring is the last step, as
    in mmdetection.

    Args:
        segmentation: without a fault (`segmentation_fault`).
        original_size: height and width of the file's image, pixels.
        window: xyxy, the part of that image that cropping left, pixels; there is no mask beyond.
        place: x and y of the window's corner on the canvas.
        canvas_size: height and width of what cropping and expanding made.
        size: height and width after resizing.
        flip: whether the image is mirrored left to right.
        convention: "modern" or "mmdet1".

    Returns:
        uint8 `[*size]` of 0 and 1.

    Example:
        >>> square, window = [[0, 0, 2, 0, 2, 2, 0, 2]], (0, 0, 4, 2)
        >>> training_mask(square, (2, 4), window, (0, 0), (2, 4), (2, 4), flip=True)
        array([[0, 0, 1, 1],
               [0, 0, 1, 1]], dtype=uint8)
    """
    height, width = (int(side) for side in size)
    if isinstance(segmentation, list) and convention == "modern":
        scale = np.array([width / canvas_size[1], height / canvas_size[0]])
        corner, end = np.array(window[:2]), np.array(window[2:])
        polygons = [
            ((np.reshape(polygon, [-1, 2]) - corner + place) * scale).reshape(-1).tolist()
            for polygon in segmentation
        ]
        mask = decode_mask(polygons, height, width)
        # Pixels are where their centres are.
        left, top = np.ceil(place * scale - 0.5).astype(int)
        right, bottom = np.ceil((end - corner + place) * scale - 0.5).astype(int)
        mask[:top], mask[bottom:], mask[:, :left], mask[:, right:] = 0, 0, 0, 0
    else:
        (x1, y1, x2, y2), (x, y) = window, place
        canvas = np.zeros(canvas_size, np.uint8)
        whole = decode_mask(segmentation, *original_size)
        canvas[y : y + y2 - y1, x : x + x2 - x1] = whole[y1:y2, x1:x2]
        mask = resize_nearest(canvas, (height, width), convention)
    return mask[:, ::-1] if flip else mask


def resize_nearest(pixels: np.ndarray, size: tuple[int, int], convention: str) -> np.ndarray:
    """Resizes to the nearest pixel, as `training_mask` describes it.

    Args:
        pixels: uint8 `[H, W]`.
        size: new height and width.
        convention: "modern" or "mmdet1".

    Returns:
        uint8 `[*size]`.

    Example:
        >>> pixels = np.arange(5, dtype=np.uint8)[None]
        >>> resize_nearest(pixels, (1, 2), "modern"), resize_nearest(pixels, (1, 2), "mmdet1")
        (array([[1, 3]], dtype=uint8), array([[0, 2]], dtype=uint8))
    """
    if convention == "mmdet1":
        return cv2.resize(pixels, tuple(size)[::-1], interpolation=cv2.INTER_NEAREST)
    for axis, (old, new) in enumerate(zip(pixels.shape, size)):
        pixels = pixels.take((2 * np.arange(new) + 1) * old // (2 * new), axis=axis)
    return pixels


def _tight_box(segmentation, height, width):
    """xyxy of a mask, cut to the image."""
    if isinstance(segmentation, dict):
        from pycocotools import mask as mask_utils

        x, y, columns, rows = mask_utils.toBbox(_compressed(segmentation)).tolist()
        return x, y, x + columns, y + rows
    x = [value for polygon in segmentation for value in polygon[0::2]]
    y = [value for polygon in segmentation for value in polygon[1::2]]
    return max(min(x), 0), max(min(y), 0), min(max(x), width), min(max(y), height)


def _compressed(rle):
    from pycocotools import mask as mask_utils

    if isinstance(rle["counts"], list):
        return mask_utils.frPyObjects(rle, *rle["size"])
    return rle


def _rle_fault(rle, height, width):
    counts = rle.get("counts")
    if rle.get("size") != [height, width]:
        return OTHER_SIZE
    if isinstance(counts, str):
        counts = _run_lengths(counts)
    if not isinstance(counts, list) or not all(map(_is_number, counts)):
        return BROKEN
    # What does not fill the image pycocotools decodes to whatever is in the memory.
    return "" if sum(counts) == height * width and min(counts) >= 0 else BROKEN


def _run_lengths(text):
    """The runs of COCO's compressed RLE, in groups of five bits, the lowest first; None if broken.

    A character minus 48 holds five bits and, as the sixth, whether more follow; the last one's
    fifth bit is the sign. From the fourth run on the difference to the last but one is written.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    return None if shift else runs


def _is_number(value):
    return isinstance(value, int | float) and math.isfinite(value)
