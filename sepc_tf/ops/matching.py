"""Which object each anchor is responsible for.

A *match* of an anchor is an int32 code: the index of a box of its image (>= 0), or BACKGROUND, or
IGNORED (takes part in no loss). Boxes of an image are padded: `present` says which are real.
"""

import dataclasses

import tensorflow as tf

from sepc_tf.ops.boxes import check_convention, pairwise_iou

BACKGROUND = -1
IGNORED = -2


@dataclasses.dataclass(frozen=True)
class MaxIoUMatcher:
    """Matches an anchor to the box it overlaps most, and every box to at least one anchor.

    With `o(a)` the anchor's best IoU over the image's boxes: matched to that box if
    `o(a) >= positive_iou`, background if `o(a) < negative_iou`, else ignored. Then every box
    claims the anchors whose IoU with it equals its best one (all of them when they tie; a later
    box takes an anchor from an earlier one). A box that no anchor overlaps claims nothing in
    "modern" and every anchor in "mmdet1" (its best IoU, 0, is reached by all of them).

    Args:
        positive_iou: from this IoU on an anchor is matched.
        negative_iou: below this IoU an anchor is background.
        convention: "modern" or "mmdet1".

    Raises:
        ValueError: unknown convention, or not `0 <= negative_iou <= positive_iou <= 1`.

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

    def __post_init__(self):
        check_convention(self.convention)
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise ValueError(
                "expected 0 <= negative_iou <= positive_iou <= 1; got "
                f"negative_iou={self.negative_iou}, positive_iou={self.positive_iou}"
            )

    def __call__(self, anchors, boxes, present, valid):
        """Matches a batch.

        Args:
            anchors: `[N, 4]` xyxy.
            boxes: `[B, M, 4]` xyxy, padded.
            present: `[B, M]` bool.
            valid: `[B, N]` bool; an anchor that is not valid is ignored, and claimed by nothing.

        Returns:
            `[B, N]` int32 matches.
        """
        # [batch, anchors, boxes]; -1 where there is no such pair
        ious = pairwise_iou(anchors, boxes, self.convention)
        ious = tf.where(valid[:, :, None] & present[:, None, :], ious, -1.0)
        best = tf.reduce_max(ious, axis=2)
        matches = tf.where(
            best >= self.positive_iou,
            tf.argmax(ious, axis=2, output_type=tf.int32),
            tf.where(best < self.negative_iou, BACKGROUND, IGNORED),
        )
        best_of_box = tf.reduce_max(ious, axis=1, keepdims=True)
        overlaps = best_of_box >= 0 if self.convention == "mmdet1" else best_of_box > 0
        claims = (ious == best_of_box) & overlaps
        index = tf.range(tf.shape(boxes)[1])
        claimed = tf.reduce_max(tf.where(claims, index, BACKGROUND), axis=2)
        matches = tf.where(claimed >= 0, claimed, matches)
        return tf.where(valid, matches, IGNORED)

    def get_config(self):
        """The arguments, as a dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        """The inverse of `get_config`."""
        return cls(**config)


def gather_matched(values, matches):
    """For each anchor the entry of its matched box; arbitrary where there is none.

    Args:
        values: `[B, M, ...]`, something of each box.
        matches: `[B, N]` int32 matches.

    Returns:
        `[B, N, ...]`.
    """
    return tf.gather(values, tf.maximum(matches, 0), axis=1, batch_dims=1)
