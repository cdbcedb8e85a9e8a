"""Differences of gradients that units in doubt explain, and differences that they do not."""

import types

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.parity.comparing import Comparison
from sepc_tf.parity.kinks import DoubtfulGradients, compare_doubtful_gradients

AXES = {"out.grad.first": (1, 0), "out.grad.second": (1, 0)}
NEAR = [(0, 1, 2, 5), (0, 3, 3, 7), (0, 0, 4, 1)]  # units whose input is 1e-9 away from 0
rng = np.random.default_rng(0)
X = rng.normal(size=(1, 20, 20, 6))
FIRST, SECOND = rng.normal(size=(6, 8)), rng.normal(size=(8, 3))
COTANGENT = rng.normal(size=(1, 20, 20, 3))
SHIFT = np.zeros((1, 20, 20, 8))
for place in NEAR:
    SHIFT[place] = 1e-9 - (X @ FIRST)[place]
INPUT = X @ FIRST + SHIFT


def gradients(flipped=()):
    """By hand, the gates of some units turned round, in the stored layout."""
    gates = (INPUT > 0).astype(float)
    for unit in flipped:
        gates[unit] = 1 - gates[unit]
    by_input = (COTANGENT @ SECOND.T) * gates
    first = np.einsum("nhwi,nhwo->oi", X, by_input)
    second = np.einsum("nhwi,nhwo->oi", INPUT * gates, COTANGENT)
    return {"out.grad.first": first, "out.grad.second": second}


def comparison_with(stored, slices=None):
    specs = {
        key: {
            "shape": a.shape,
            "slices": slices,
            "mean": a.mean(),
            "std": a.std(),
            "abssum": np.abs(a).sum(),
        }
        for key, a in stored.items()
    }
    cut = (slice(None),) * 2 if slices is None else tuple(slice(*s) for s in slices)
    data = {key: np.float32(a[cut]) for key, a in stored.items()}
    return Comparison(types.SimpleNamespace(name="c", data=data, output_specs=specs), 1e-4)


def in_float64():
    variables = {"out.grad.first": tf.Variable(FIRST), "out.grad.second": tf.Variable(SECOND)}

    def loss_of():
        z = tf.constant(X) @ variables["out.grad.first"] + SHIFT
        return tf.reduce_sum(tf.nn.relu(z) @ variables["out.grad.second"] * COTANGENT)

    return DoubtfulGradients(variables, AXES, loss_of, [INPUT + 1e-7])


def test_gradients_and_contributions_are_those_by_hand():
    exact = in_float64()
    units = exact.units
    np.testing.assert_array_equal(
        np.sort(units.places), np.sort(np.ravel_multi_index(np.transpose(NEAR), INPUT.shape))
    )
    base = gradients()
    for unit, place in enumerate(units.places):
        flipped = gradients([np.unravel_index(place, INPUT.shape)])
        added = exact.contribution([unit])
        for key, value in exact.gradients.items():
            np.testing.assert_allclose(value, base[key], rtol=1e-9)
            np.testing.assert_allclose(value + added[key], flipped[key], rtol=1e-7, atol=1e-7)
        direction = {key: rng.normal(size=g.shape) for key, g in base.items()}
        product = sum(np.vdot(direction[key], added[key]) for key in base)
        assert exact.products(direction)[unit] == pytest.approx(product, rel=1e-5)


@pytest.mark.parametrize("slices", [None, [[0, None, 2], [1, None, 2]]])
@pytest.mark.parametrize("flipped", [NEAR[:1], NEAR[1:], []])
def test_what_units_in_doubt_explain_is_accepted(flipped, slices):
    comparison = comparison_with(gradients(flipped), slices)
    ours = gradients(NEAR[:1])
    compare_doubtful_gradients(comparison, ours, in_float64)
    assert comparison.finish().passed, str(comparison)
    assert comparison.error < 1e-6  # gradients of which elements or only statistics show it
    told = ["of 3 ReLUs" in n and f" {len(flipped)} must" in n for n in comparison.notes]
    assert told == ([] if flipped == NEAR[:1] else [True])


@pytest.mark.parametrize("fault", ["sign", "half", "unit"])
def test_what_they_do_not_explain_fails(fault):
    stored = gradients(NEAR[:1])
    if fault == "sign":
        stored["out.grad.second"][0] *= -1
    if fault == "half":  # a unit is in it wholly or not at all
        stored = {key: (g + gradients()[key]) / 2 for key, g in stored.items()}
    if fault == "unit":  # one that is not near its kink
        stored = gradients([(0, 2, 2, 2)])
    comparison = comparison_with(stored)
    compare_doubtful_gradients(comparison, gradients(), in_float64)
    assert any("relative error" in problem for problem in comparison.problems)
