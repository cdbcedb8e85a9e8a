"""One point for each cell of a pyramid, and which box each point is responsible for."""

import dataclasses

import tensorflow as tf

from sepc_tf.ops.boxes import box_areas, check_convention
from sepc_tf.ops.chunks import fold_boxes
from sepc_tf.ops.matching import BACKGROUND, IGNORED
from sepc_tf.ops.saved import SavedByFields


def grid_points(level_sizes, strides, convention="modern"):
    """The points of every level.

    The point of cell (row i, column j) on a level of stride t is `(x, y) = ((j + 0.5) t,
    (i + 0.5) t)`, the centre of the cell; in "mmdet1" `(j t + t // 2, i t + t // 2)`, which differs
    for odd strides.

    Args:
        level_sizes: height and width of each level in cells, pairs of ints or of int tensors.
        strides: stride of each level in pixels.
        convention: "modern" or "mmdet1".

    Returns:
        list of `[H_l * W_l, 2]` float32, x and y in pixels of the network's input, rows of cells
        one after the other.

    Example:
        >>> grid_points([(1, 2)], (8,))[0].numpy()
        array([[ 4.,  4.],
               [12.,  4.]], dtype=float32)

    Source: FCOS (arXiv 1904.01355), section 3.1.
    """
    levels = []
    for stride, (height, width) in zip(strides, level_sizes):
        shift = stride // 2 if convention == "mmdet1" else stride / 2
        y, x = (tf.cast(tf.range(n) * stride, tf.float32) + shift for n in (height, width))
        levels.append(tf.reshape(tf.stack(tf.meshgrid(x, y), axis=-1), [-1, 2]))
    return levels


def box_distances(points, boxes):
    """Distances from points to the four sides of boxes; negative where a point lies beyond a side.

    Args:
        points: `[..., 2]` x and y.
        boxes: `[..., 4]` xyxy; leading axes broadcast.

    Returns:
        `[..., 4]` left, top, right, bottom.

    Example:
        >>> box_distances(tf.constant([2.0, 1.0]), tf.constant([0.0, 0.0, 3.0, 8.0])).numpy()
        array([2., 1., 1., 7.], dtype=float32)
    """
    return tf.concat([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def distance_boxes(points, distances):
    """Boxes of distances; the inverse of `box_distances`.

    Args:
        points: `[..., 2]` x and y.
        distances: `[..., 4]` left, top, right, bottom; leading axes broadcast.

    Returns:
        `[..., 4]` xyxy.

    Example:
        >>> distance_boxes(tf.constant([2.0, 1.0]), tf.constant([2.0, 1.0, 1.0, 7.0])).numpy()
        array([0., 0., 3., 8.], dtype=float32)
    """
    return tf.concat([points - distances[..., :2], points + distances[..., 2:]], axis=-1)


def centerness(distances):
    """How near a point is to the middle of a box: 1 there, 0 at the border and outside.

    `sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))`

    Args:
        distances: `[..., 4]` left, top, right, bottom.

    Returns:
        `[...]` in [0, 1].

    Example:
        >>> float(centerness(tf.constant([1.0, 4.0, 4.0, 4.0])))
        0.5

    Source: FCOS (arXiv 1904.01355), equation 3.
    """
    low, high = (f(distances[..., :2], distances[..., 2:]) for f in (tf.minimum, tf.maximum))
    shares = tf.math.divide_no_nan(tf.maximum(low, 0.0), tf.maximum(high, 0.0))
    return tf.sqrt(shares[..., 0] * shares[..., 1])


@dataclasses.dataclass(frozen=True)
class PointMatcher(SavedByFields):
    """Matches a point to the smallest box around it that its level is there for.

    A box wants the points strictly inside it whose largest distance to one of its sides lies in
    the range of their level, both ends included. With `center_radius` only those of them strictly
    inside the square of `2 center_radius` strides about the centre of the box. Of several boxes
    that want a point the one with the smallest area gets it, of equal ones the first. Every other
    point is background.

    Args:
        strides: stride of each level, finest first.
        max_distances: ends of the ranges: level l learns distances from `max_distances[l - 1]` (the
            finest from 0) to `max_distances[l]`, the coarsest without end. None for 8 strides of
            the level.
        center_radius: in strides of the level; None for the whole box.
        convention: "modern" or "mmdet1" (areas count the last pixel).

    Raises:
        ValueError: unknown convention, ends that do not rise or are not one fewer than the strides,
            or a radius that is not positive.

    Example:
        >>> matcher = PointMatcher(strides=(8, 16))
        >>> boxes, present = tf.constant([[[0.0, 0.0, 20.0, 20.0]]]), tf.constant([[True]])
        >>> valid = tf.ones([1, 6 + 2], tf.bool)
        >>> matcher([(2, 3), (1, 2)], boxes, present, valid).numpy()
        array([[ 0,  0, -1,  0,  0, -1, -1, -1]], dtype=int32)

    Source: FCOS (arXiv 1904.01355), sections 3.1 and 3.2; the centre as in the authors' later code.
    """

    strides: tuple = (8, 16, 32, 64, 128)
    max_distances: tuple | None = None
    center_radius: float | None = None
    convention: str = "modern"

    def __post_init__(self):
        check_convention(self.convention)
        strides = tuple(self.strides)
        given = self.max_distances
        ends = [8 * stride for stride in strides[:-1]] if given is None else given
        ends = tuple(float(end) for end in ends)
        object.__setattr__(self, "strides", strides)
        object.__setattr__(self, "max_distances", ends)
        if len(ends) != len(strides) - 1 or list(ends) != sorted({0.0, *ends})[1:]:
            raise ValueError(
                f"max_distances must be {len(strides) - 1} rising positive numbers, one for each "
                f"level but the coarsest of strides {strides}; got {ends}"
            )
        if self.center_radius is not None and self.center_radius <= 0:
            raise ValueError(f"center_radius must be positive; got {self.center_radius}")

    def points(self, level_sizes):
        """The points of every level; see `grid_points`."""
        return grid_points(level_sizes, self.strides, self.convention)

    def __call__(self, level_sizes, boxes, present, valid):
        """Matches a batch.

        Args:
            level_sizes: as in `grid_points`.
            boxes: `[B, M, 4]` xyxy, padded.
            present: `[B, M]` bool.
            valid: `[B, N]` bool; a point that is not valid is ignored.

        Returns:
            `[B, N]` int32 matches (see `sepc_tf.ops.matching`), the levels concatenated.
        """
        levels = self.points(level_sizes)
        x, y = tf.unstack(tf.concat(levels, axis=0), axis=-1)

        def of_points(values):
            return tf.concat([tf.fill(tf.shape(p)[:1], v) for p, v in zip(levels, values)], axis=0)

        shortest = of_points([0.0, *self.max_distances])
        longest = of_points([*self.max_distances, float("inf")])
        reach = of_points([float((self.center_radius or 0.0) * s) for s in self.strides])

        def step(state, index, box, area, here):
            smallest, matches = state  # each [batch, points]
            x1, y1, x2, y2 = tf.unstack(box[:, None], axis=-1)
            farthest = tf.maximum(tf.maximum(x - x1, x2 - x), tf.maximum(y - y1, y2 - y))
            wanted = (farthest >= shortest) & (farthest <= longest) & valid & here[:, None]
            if self.center_radius is not None:
                cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
                x1, x2 = tf.maximum(x1, cx - reach), tf.minimum(x2, cx + reach)
                y1, y2 = tf.maximum(y1, cy - reach), tf.minimum(y2, cy + reach)
            wanted &= (x > x1) & (x < x2) & (y > y1) & (y < y2)
            wins = wanted & (area[:, None] < smallest)
            return tf.where(wins, area[:, None], smallest), tf.where(wins, index, matches)

        nothing = (tf.fill(tf.shape(valid), float("inf")), tf.fill(tf.shape(valid), BACKGROUND))
        areas = box_areas(boxes, self.convention)
        _, matches = fold_boxes(step, nothing, boxes, areas, present)
        return tf.where(valid, matches, IGNORED)
