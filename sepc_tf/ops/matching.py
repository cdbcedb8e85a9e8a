"""Which object each anchor is responsible for.

A *match* of an anchor is an int32 code: the index of a box of its image (>= 0), or BACKGROUND, or
IGNORED (takes part in no loss). Boxes of an image are padded: `present` says which are real.
"""

import dataclasses

import tensorflow as tf

from sepc_tf.ops.boxes import (
    LAST_PIXEL,
    box_areas,
    check_convention,
    pairwise_intersections,
    pairwise_iou,
)
from sepc_tf.ops.chunks import fold_boxes
from sepc_tf.ops.saved import SavedByFields

BACKGROUND = -1
IGNORED = -2
# IoUs that differ relatively by this little are tied: a few units in the last place of a float32.
TIE = 5e-7


@dataclasses.dataclass(frozen=True)
class MaxIoUMatcher(SavedByFields):
    """Matches an anchor to the box it overlaps most, and every box to at least one anchor.

    With `o(a)` the anchor's best IoU over the image's boxes: matched to that box if
    `o(a) >= positive_iou`, background if `o(a) < negative_iou`, else ignored. Then every box
    claims the anchors whose IoU with it equals its best one (all of them when they tie; a later
    box takes an anchor from an earlier one), if that IoU is at least `claim_iou`. A box that no
    anchor overlaps claims nothing in "modern"; in "mmdet1" it claims every anchor where
    `claim_iou` is 0 (its best IoU, 0, is reached by all of them).

    Args:
        positive_iou: from this IoU on an anchor is matched.
        negative_iou: below this IoU an anchor is background.
        convention: "modern" or "mmdet1".
        claim_iou: a box claims no anchor that it overlaps less.

    Raises:
        ValueError: unknown convention, or not `0 <= negative_iou <= positive_iou <= 1`, or
            `claim_iou` is outside [0, 1].

    Example:
        >>> anchors = tf.constant([[0.0, 0, 4, 4], [0, 0, 4, 2], [9, 9, 12, 12]])
        >>> boxes = tf.constant([[[0.0, 0.0, 4.0, 4.0]]])
        >>> present, valid = tf.constant([[True]]), tf.constant([[True, True, True]])
        >>> MaxIoUMatcher()(anchors, boxes, present, valid).numpy()
        array([[ 0,  0, -1]], dtype=int32)

    Source: RetinaNet (arXiv 1708.02002), section 4; mmdetection's rule for ties.
    """

    positive_iou: float = 0.5
    negative_iou: float = 0.4
    convention: str = "modern"
    claim_iou: float = 0.0

    def __post_init__(self):
        check_convention(self.convention)
        if not 0 <= self.claim_iou <= 1:
            raise ValueError(f"claim_iou must be in [0, 1]; got {self.claim_iou}")
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise ValueError(
                "expected 0 <= negative_iou <= positive_iou <= 1; got "
                f"negative_iou={self.negative_iou}, positive_iou={self.positive_iou}"
            )

    def __call__(self, anchors, boxes, present, valid):
        """Matches a batch.

        Args:
            anchors: `[N, 4]` xyxy, or `[B, N, 4]` where each image has its own.
            boxes: `[B, M, 4]` xyxy, padded.
            present: `[B, M]` bool.
            valid: `[B, N]` bool; an anchor that is not valid is ignored, and claimed by nothing.

        Returns:
            `[B, N]` int32 matches.
        """

        def step(state, index, box, here):
            best, matches, claimed = state  # each [batch, anchors]
            ious = pairwise_iou(anchors, box[:, None], self.convention)[..., 0]
            ious = tf.where(valid & here[:, None], ious, -1.0)
            better = ious > best
            best_of_box = tf.reduce_max(ious, axis=1, keepdims=True)
            overlaps = best_of_box >= self.claim_iou
            if self.convention == "modern":
                overlaps &= best_of_box > 0
            # XLA computes `ious` twice, with different rounding: equality would lose whole boxes.
            claims = (ious >= best_of_box * (1 - TIE)) & overlaps
            return (
                tf.where(better, ious, best),
                tf.where(better, index, matches),
                tf.where(claims, index, claimed),
            )

        shape = tf.shape(valid)
        nothing = (tf.fill(shape, -1.0), tf.fill(shape, BACKGROUND), tf.fill(shape, BACKGROUND))
        best, matches, claimed = fold_boxes(step, nothing, boxes, present)
        unmatched = tf.where(best < self.negative_iou, BACKGROUND, IGNORED)
        matches = tf.where(best >= self.positive_iou, matches, unmatched)
        matches = tf.where(claimed >= 0, claimed, matches)
        return tf.where(valid, matches, IGNORED)


def gather_matched(values, matches):
    """For each anchor the entry of its matched box; arbitrary where there is none.

    Args:
        values: `[B, M, ...]`, something of each box.
        matches: `[B, N]` int32 matches.

    Returns:
        `[B, N, ...]`.
    """
    return tf.gather(values, tf.maximum(matches, 0), axis=1, batch_dims=1)


@dataclasses.dataclass(frozen=True)
class EffectiveAreaMatcher(SavedByFields):
    """Matches the anchors in the middle of a box to it, on every level alike.

    With the box shrunk about its centre by `area_scale`: an anchor is a candidate of a box if its
    centre lies inside the whole box and more than `min_coverage` of the anchor lies inside the
    shrunk one. An anchor whose centre is in no such box, but which is covered so by a shrunk one,
    is ignored; the rest is background. Of several boxes that want an anchor the one of highest
    priority gets it: in "modern" the smaller one. The authors sort the boxes by falling area and
    take entry g of the sorting permutation for the priority of box g, which is the same only where
    the permutation is its own inverse; "mmdet1" does as they do.

    Args:
        area_scale: side of the shrunk box / side of the box.
        min_coverage: see above.
        convention: "modern" or "mmdet1".

    Raises:
        ValueError: unknown convention, or `area_scale` is not in (0, 1].

    Example:
        >>> anchors = tf.constant([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8]])
        >>> boxes = tf.constant([[[-20.0, -20.0, 28.0, 28.0]]])
        >>> present, valid = tf.constant([[True]]), tf.constant([[True, True, True]])
        >>> EffectiveAreaMatcher()(anchors, boxes, present, valid).numpy()
        array([[ 0,  0, -1]], dtype=int32)

    Source: FSAF (arXiv 1903.00621), section 3.2.
    """

    area_scale: float = 0.2
    min_coverage: float = 0.01
    convention: str = "modern"

    def __post_init__(self):
        check_convention(self.convention)
        if not 0 < self.area_scale <= 1:
            raise ValueError(f"area_scale must be in (0, 1]; got {self.area_scale}")

    def __call__(self, anchors, boxes, present, valid):
        """Matches a batch; arguments and result as of `MaxIoUMatcher`."""
        last = LAST_PIXEL[self.convention]
        centres = (boxes[..., :2] + boxes[..., 2:] + last) / 2
        half = (boxes[..., 2:] - boxes[..., :2] + last) / 2 * self.area_scale
        shrunk = tf.concat([centres - half, centres + half - last], axis=-1)
        anchor_areas = box_areas(anchors, self.convention)
        x, y = ((anchors[:, i] + anchors[:, i + 2] + last) / 2 for i in range(2))

        def step(state, index, box, middle, here, priority):
            highest, matches = state  # each [batch, anchors]
            covered = pairwise_intersections(anchors, middle[:, None], self.convention)[..., 0]
            covered = covered / anchor_areas > self.min_coverage
            covered &= valid & here[:, None]
            x1, y1, x2, y2 = tf.unstack(box[:, None], axis=-1)
            wanted = covered & (x > x1) & (x < x2) & (y > y1) & (y < y2)
            wins = wanted & (priority[:, None] > highest)
            unmatched = tf.where(covered & (matches < 0), IGNORED, matches)
            return (
                tf.where(wins, priority[:, None], highest),
                tf.where(wins, index, unmatched),
            )

        nothing = (tf.fill(tf.shape(valid), -1), tf.fill(tf.shape(valid), BACKGROUND))
        priorities = self._priorities(boxes, present)
        _, matches = fold_boxes(step, nothing, boxes, shrunk, present, priorities)
        return tf.where(valid, matches, IGNORED)

    def _priorities(self, boxes, present):
        areas = tf.where(present, box_areas(boxes), -1.0)  # padding sorts last
        largest_first = tf.argsort(areas, axis=1, direction="DESCENDING", stable=True)
        if self.convention == "mmdet1":
            return largest_first
        return tf.argsort(largest_first, axis=1)  # inverse permutation: the rank
