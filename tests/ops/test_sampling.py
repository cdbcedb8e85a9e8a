"""Random sampling: counts, order, chances, independence of the number of replicas."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.sampling import RandomSampler, random_of_step


def matches_of(positives, negatives, ignored):
    values = [3] * positives + [-1] * negatives + [-2] * ignored
    return np.random.default_rng(0).permutation(np.array(values, np.int32))[None]


@pytest.mark.parametrize(
    ("counts", "taken"),
    [
        ((10, 20, 5), (4, 12)),  # a quarter at most
        ((2, 20, 5), (2, 14)),  # the missing positives are filled up
        ((10, 3, 5), (4, 3)),  # positives do not fill up
        ((0, 40, 0), (0, 16)),
        ((3, 0, 0), (3, 0)),  # fewer than are wanted of anything
    ],
)
def test_counts_and_order(counts, taken):
    matches = matches_of(*counts)
    random = np.random.default_rng(1).random(matches.shape, np.float32)
    rows, present = (x.numpy()[0] for x in RandomSampler(16, 0.25)(matches, random))
    assert rows.shape == present.shape == (16,)
    assert present.sum() == sum(taken) and not present[sum(taken) :].any()
    kept = rows[: sum(taken)]
    assert len(set(kept)) == len(kept)
    np.testing.assert_array_equal(matches[0, kept], [3] * taken[0] + [-1] * taken[1])


def test_every_box_has_the_same_chance():
    matches = np.tile(matches_of(8, 24, 4), (2000, 1))
    random = random_of_step(matches.shape, seed=5, step=3, replicas=1, replica=0)
    rows, present = (x.numpy() for x in RandomSampler(8, 0.5)(matches, random))
    taken = np.bincount(rows[present], minlength=36) / 2000
    np.testing.assert_allclose(taken[matches[0] == 3], 4 / 8, atol=0.05)
    np.testing.assert_allclose(taken[matches[0] == -1], 4 / 24, atol=0.05)
    assert not taken[matches[0] == -2].any()


def test_random_numbers_depend_on_seed_step_and_place_only():
    def numbers(seed=1, step=7, replicas=1, replica=0):
        shape = (4 // replicas, 5)
        return random_of_step(shape, seed, tf.constant(step, tf.int64), replicas, replica).numpy()

    whole = numbers()
    assert whole.min() >= 0 and whole.max() < 1 and len(np.unique(whole)) == 20
    np.testing.assert_array_equal(numbers(), whole)
    shares = [numbers(replicas=2, replica=tf.constant(i)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)
    assert not (numbers(seed=2) == whole).any() and not (numbers(step=8) == whole).any()


@pytest.mark.parametrize("arguments", [{"number": 0}, {"positive_fraction": 1.5}])
def test_wrong_settings_are_named(arguments):
    with pytest.raises(ValueError, match="expected number >= 1 and 0 <= positive_fraction <= 1"):
        RandomSampler(**arguments)
