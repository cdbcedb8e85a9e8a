"""Which of the matched and unmatched boxes of an image are learnt from."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from sepc_tf.ops.matching import BACKGROUND
from sepc_tf.ops.saved import SavedByFields


@dataclasses.dataclass(frozen=True)
class RandomSampler(SavedByFields):
    """Takes a fixed number of boxes of each image at random, positives up to a share of them.

    At most `number * positive_fraction` of the positives (matches >= 0), then as many of the
    background as are missing to `number`, all without replacement and with equal chances.

    Args:
        number: S, boxes of an image.
        positive_fraction: the largest share of positives.

    Raises:
        ValueError: `number` is below 1, or the fraction is outside [0, 1].

    Example:
        >>> matches = tf.constant([[-1, 0, -2, 1, -1]])
        >>> random = tf.constant([[0.1, 0.2, 0.0, 0.8, 0.9]])
        >>> rows, present = RandomSampler(number=4, positive_fraction=0.25)(matches, random)
        >>> rows.numpy()[present]  # one positive, then all of the background
        array([3, 4, 0], dtype=int32)

    Source: Faster R-CNN (arXiv 1506.01497), section 3.1.3; Fast R-CNN (arXiv 1504.08083), 2.3.
    """

    number: int = 256
    positive_fraction: float = 0.5

    def __post_init__(self):
        if self.number < 1 or not 0 <= self.positive_fraction <= 1:
            raise ValueError(
                "expected number >= 1 and 0 <= positive_fraction <= 1; got "
                f"number={self.number}, positive_fraction={self.positive_fraction}"
            )

    @property
    def most_positives(self) -> int:
        """How many positives it takes of an image at most."""
        return int(self.number * self.positive_fraction)

    def __call__(self, matches: tf.Tensor, random: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Samples a batch.

        Args:
            matches: `[B, N]` int32, as of `sepc_tf.ops.matching`.
            random: `[B, N]` float32, uniform in [0, 1): the boxes of the highest are taken.

        Returns:
            `[B, S]` int32 rows, positives first, and `[B, S]` bool, which of them are real.
        """
        keys = tf.where(matches >= 0, random, -1.0)
        positives, are_positive = _best(keys, self.most_positives)
        free = self.number - tf.reduce_sum(tf.cast(are_positive, tf.int32), axis=1, keepdims=True)
        negatives, are_negative = _best(tf.where(matches == BACKGROUND, random, -1.0), self.number)
        are_negative &= tf.range(self.number) < free
        rows = tf.concat([positives, negatives], axis=1)
        present = tf.concat([are_positive, are_negative], axis=1)
        # Of these, `number` at most are present: bring them to the front, in their order.
        order = tf.argsort(tf.cast(present, tf.int32), direction="DESCENDING", stable=True)
        order = order[:, : self.number]
        return tuple(tf.gather(x, order, axis=1, batch_dims=1) for x in (rows, present))


def _best(keys, count):
    """The rows of the `count` highest keys of each image, and which of these keys are >= 0."""
    missing = tf.maximum(count - tf.shape(keys)[1], 0)
    keys = tf.pad(keys, [[0, 0], [0, missing]], constant_values=-1.0)
    keys, rows = tf.math.top_k(keys, k=count)
    return tf.where(keys >= 0, rows, 0), keys >= 0


def random_of_step(
    shape: tuple, seed: int, step: int | tf.Tensor, replicas: int, replica: int | tf.Tensor
) -> tf.Tensor:
    """Uniform numbers that depend on seed, step and place in the whole batch only.

    Args:
        shape: (B, N) of this replica's share of the batch, ints or int32 scalars.
        seed: any int of 64 bits.
        step: number of the training step, int or integer scalar.
        replicas: number of replicas; each has as many images.
        replica: number of this one, int or int32 scalar.

    Returns:
        `[B, N]` float32 in [0, 1).

    Example:
        >>> both = random_of_step((2, 3), 0, step=7, replicas=1, replica=0)
        >>> second = random_of_step((1, 3), 0, step=7, replicas=2, replica=1)
        >>> bool(tf.reduce_all(both[1:] == second))
        True
    """
    batch, number = shape
    seeds = tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])
    whole = tf.random.stateless_uniform([batch * replicas, number], seeds)
    return tf.reshape(whole, [replicas, batch, number])[replica]
