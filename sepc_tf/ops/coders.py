"""Box codes: what the box convolution predicts relative to an anchor."""

import dataclasses
import math

import tensorflow as tf

from sepc_tf.ops.boxes import LAST_PIXEL, check_convention
from sepc_tf.ops.saved import SavedByFields


def _sides_and_centres(boxes, last_pixel):
    """Returns widths and heights, and centres without the last pixel's half: each `[..., 2]`."""
    return boxes[..., 2:] - boxes[..., :2] + last_pixel, (boxes[..., :2] + boxes[..., 2:]) * 0.5


@dataclasses.dataclass(frozen=True)
class BoxCoder(SavedByFields):
    """Centre shifts in anchor sides and logarithms of side ratios.

    `dx = (gx - px) / pw`, `dy = (gy - py) / ph`, `dw = ln(gw / pw)`, `dh = ln(gh / ph)`, each
    divided by its entry of `stds`; p is the anchor, g the box, (x, y) centres, (w, h) sides.
    Decoding limits `|dw|` and `|dh|` to `ln(1000 / 16)`. "mmdet1" counts the last pixel in w and h.

    Args:
        stds: standard deviations of (dx, dy, dw, dh).
        convention: "modern" or "mmdet1".

    Example:
        >>> coder = BoxCoder(stds=(0.1, 0.1, 0.2, 0.2))
        >>> anchors, boxes = tf.constant([[0.0, 0, 4, 4]]), tf.constant([[1.0, 0, 5, 4]])
        >>> coder.encode(anchors, boxes).numpy().tolist()
        [[2.5, 0.0, 0.0, 0.0]]

    Source: R-CNN (arXiv 1311.2524), appendix C.
    """

    stds: tuple = (1.0, 1.0, 1.0, 1.0)
    convention: str = "modern"

    def __post_init__(self):
        check_convention(self.convention)
        object.__setattr__(self, "stds", tuple(self.stds))
        if len(self.stds) != 4 or min(self.stds) <= 0:
            raise ValueError(f"stds must be four positive numbers; got {self.stds}")

    def encode(self, anchors, boxes):
        """Codes of boxes relative to anchors.

        Args:
            anchors: `[..., 4]` xyxy.
            boxes: `[..., 4]` xyxy, of positive width and height.

        Returns:
            `[..., 4]` dx, dy, dw, dh.
        """
        last = LAST_PIXEL[self.convention]
        anchor_sides, anchor_centres = _sides_and_centres(anchors, last)
        sides, centres = _sides_and_centres(boxes, last)
        deltas = [(centres - anchor_centres) / anchor_sides, tf.math.log(sides / anchor_sides)]
        return tf.concat(deltas, axis=-1) / tf.constant(self.stds, boxes.dtype)

    def decode(self, anchors, deltas):
        """Boxes of codes; the inverse of `encode`.

        Args:
            anchors: `[..., 4]` xyxy.
            deltas: `[..., 4]` dx, dy, dw, dh.

        Returns:
            `[..., 4]` xyxy, not clipped to the image.
        """
        last = LAST_PIXEL[self.convention]
        limit = math.log(1000 / 16)
        deltas = deltas * tf.constant(self.stds, deltas.dtype)
        anchor_sides, anchor_centres = _sides_and_centres(anchors, last)
        centres = anchor_centres + anchor_sides * deltas[..., :2]
        sides = anchor_sides * tf.exp(tf.clip_by_value(deltas[..., 2:], -limit, limit))
        half = sides * 0.5
        return tf.concat([centres - half + last / 2, centres + half - last / 2], axis=-1)


@dataclasses.dataclass(frozen=True)
class TBLRCoder(SavedByFields):
    """Distances from the anchor's centre to the four sides of a box, in anchor sides.

    Channels in the authors' order (bottom, top, left, right): `b = (y2 - cy) / ph`,
    `t = (cy - y1) / ph`, `l = (cx - x1) / pw`, `r = (x2 - cx) / pw`. "mmdet1" counts the last
    pixel: `x2 + 1` and `y2 + 1` in place of x2 and y2, for anchors and boxes.

    Args:
        convention: "modern" or "mmdet1".

    Example:
        >>> anchors, boxes = tf.constant([[0.0, 0, 4, 4]]), tf.constant([[0.0, 1, 6, 6]])
        >>> TBLRCoder().encode(anchors, boxes).numpy().tolist()
        [[1.0, 0.25, 0.5, 1.0]]

    Source: FSAF (arXiv 1903.00621), section 3.1.
    """

    convention: str = "modern"

    def __post_init__(self):
        check_convention(self.convention)

    def encode(self, anchors, boxes):
        """Codes of boxes relative to anchors: `[..., 4]` bottom, top, left, right."""
        sides, (cx, cy) = self._geometry(anchors)
        last = LAST_PIXEL[self.convention]
        x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
        return tf.stack([y2 - cy + last, cy - y1, cx - x1, x2 - cx + last], axis=-1) / sides

    def decode(self, anchors, distances):
        """Boxes of codes; the inverse of `encode`: `[..., 4]` xyxy, not clipped."""
        sides, (cx, cy) = self._geometry(anchors)
        last = LAST_PIXEL[self.convention]
        bottom, top, left, right = tf.unstack(distances * sides, axis=-1)
        return tf.stack([cx - left, cy - top, cx + right - last, cy + bottom - last], axis=-1)

    def _geometry(self, anchors):
        last = LAST_PIXEL[self.convention]
        sides, centres = _sides_and_centres(anchors, last)
        width, height = tf.unstack(sides, axis=-1)
        return (
            tf.stack([height, height, width, width], axis=-1),
            tf.unstack(centres + last / 2, axis=-1),
        )
