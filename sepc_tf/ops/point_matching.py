"""Which object each location of a pyramid is the first guess of."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from sepc_tf.ops.chunks import fold_boxes
from sepc_tf.ops.matching import BACKGROUND, IGNORED
from sepc_tf.ops.saved import SavedByFields

# In pixels: a shorter side of a box counts as this long.
SHORTEST_SIDE = 1e-6


@dataclasses.dataclass(frozen=True)
class NearestPointMatcher(SavedByFields):
    """Matches every box to one location: the nearest of the level that fits its size.

    The level of a box is the coarsest one with `scale stride <= sqrt(width height)`, or the finest
    one if none is. The distance of a location is `|((x - cx) / width, (y - cy) / height)|` from the
    box's centre. Of several boxes that want a location the one that is nearer gets it, the earlier
    one if they are equally near; the others get none.

    Args:
        strides: stride of each level, finest first.
        scale: side of a box in strides of its level.

    Example:
        >>> points = [tf.constant([[4.0, 4.0], [12.0, 4.0]]), tf.constant([[8.0, 8.0]])]
        >>> boxes, present = tf.constant([[[0.0, 0.0, 9.0, 9.0]]]), tf.constant([[True]])
        >>> NearestPointMatcher((8, 16))(points, boxes, present, tf.constant([[True] * 3])).numpy()
        array([[ 0, -1, -1]], dtype=int32)

    Source: RepPoints (arXiv 1904.11490), section 4.2. In mmdetection the level is the truncated
    mean of `log2(width / scale)` and `log2(height / scale)`, limited to the levels there are, which
    is the same for strides that are powers of two.
    """

    strides: tuple = (8, 16, 32, 64, 128)
    scale: float = 4.0

    def __post_init__(self):
        object.__setattr__(self, "strides", tuple(self.strides))

    def __call__(
        self, points: list[tf.Tensor], boxes: tf.Tensor, present: tf.Tensor, valid: tf.Tensor
    ) -> tf.Tensor:
        """Matches a batch.

        Args:
            points: list of `[N_l, 2]` float32 x, y of each level; N = sum of N_l.
            boxes: `[B, M, 4]` xyxy, padded.
            present: `[B, M]` bool.
            valid: `[B, N]` bool; a location that is not valid is ignored, and wanted by no box.

        Returns:
            `[B, N]` int32 matches, as in `sepc_tf.ops.matching`.
        """
        level = tf.concat([tf.fill([tf.shape(p)[0]], i) for i, p in enumerate(points)], axis=0)
        x, y = tf.unstack(tf.concat(points, axis=0), axis=1)  # [N]
        sides = tf.maximum(boxes[..., 2:] - boxes[..., :2], SHORTEST_SIDE)
        centres = (boxes[..., :2] + boxes[..., 2:]) / 2
        # Compared without roots or logarithms, which would have to be exact at powers of two.
        limits = tf.square(tf.constant(self.strides[1:], tf.float32) * self.scale)
        areas = sides[..., 0] * sides[..., 1]
        level_of_box = tf.reduce_sum(tf.cast(areas[..., None] >= limits, tf.int32), axis=-1)

        def step(state, index, centre, side, wanted_level, here):
            shortest, matches = state  # each [batch, locations]
            candidate = valid & here[:, None] & (level == wanted_level[:, None])
            dx = (x - centre[:, :1]) / side[:, :1]
            dy = (y - centre[:, 1:]) / side[:, 1:]
            distance = tf.where(candidate, tf.sqrt(dx * dx + dy * dy), float("inf"))
            nearest = tf.argmin(distance, axis=1, output_type=tf.int32)
            taken = tf.range(tf.size(x)) == nearest[:, None]
            taken &= distance < shortest
            return tf.where(taken, distance, shortest), tf.where(taken, index, matches)

        shape = tf.shape(valid)
        nothing = tf.fill(shape, float("inf")), tf.fill(shape, BACKGROUND)
        _, matches = fold_boxes(step, nothing, centres, sides, level_of_box, present)
        return tf.where(valid, matches, IGNORED)
