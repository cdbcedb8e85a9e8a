from types import SimpleNamespace

import numpy as np
import pytest

from sepc_tf.parity import Comparison, relative_error

pytestmark = pytest.mark.same_on_both_stacks


def specs_of(array, slices=None, **more):
    statistics = {"mean": array.mean(), "std": array.std(), "abssum": np.abs(array).sum()}
    return {"shape": list(array.shape), "slices": slices, **statistics, **more}


def comparison_with(array, slices=None, tolerance=1e-4, **more):
    stored = array if slices is None else array[tuple(slice(*s) for s in slices)]
    case = SimpleNamespace(
        name="made up",
        data={"out.y": stored},
        output_specs={"out.y": specs_of(array, slices, **more)},
    )
    return Comparison(case, tolerance)


ARRAY = np.random.default_rng(0).standard_normal([4, 50])


def test_relative_error_is_in_units_of_the_largest():
    assert relative_error([1.0, 4.0], [1.0, 5.0]) == pytest.approx(0.2)
    assert relative_error([1e-7], [0.0], scale=10.0) == pytest.approx(1e-8)
    assert relative_error([], []) == 0.0
    assert np.isnan(relative_error([np.nan], [1.0]))
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(1,\)"):
        relative_error([1.0, 2.0], [1.0])


@pytest.mark.parametrize("slices", [None, [[0, None, 2], [1, None, 7]]])
def test_a_stored_part_and_the_statistics_of_the_whole(slices):
    comparison = comparison_with(ARRAY, slices)
    comparison.output("out.y", ARRAY.astype(np.float32))
    assert comparison.finish().passed and 0 < comparison.error < 1e-6

    for index in ((0, 1), (1, 2)):  # stored in both; only in the statistics of the second
        comparison = comparison_with(ARRAY, slices)
        wrong = ARRAY.copy()
        wrong[index] += 1.0
        comparison.output("out.y", wrong)
        assert not comparison.passed and "out.y: relative error" in str(comparison)


def test_nan_another_shape_and_what_is_left_out_are_problems():
    comparison = comparison_with(ARRAY)
    comparison.output("out.y", np.full_like(ARRAY, np.nan))
    assert "relative error nan" in comparison.problems[0]
    comparison = comparison_with(ARRAY)
    comparison.output("out.y", ARRAY[:3])
    assert "shape (3, 50), expected (4, 50)" in comparison.problems[0]
    assert comparison_with(ARRAY).finish().problems == ["out.y: not compared"]


@pytest.mark.parametrize(("got", "passes"), [(9e-10, True), (2e-9, False), (np.nan, False)])
def test_what_is_exactly_zero_is_compared_absolutely(got, passes):
    # Relatively, 9e-10 against the stored 1e-12 is off by a factor of a thousand.
    comparison = comparison_with(np.full(8, 1e-12), tolerance=1e-10, exact_zero=True)
    comparison.output("out.y", np.full(8, got))
    assert comparison.finish().passed == passes
    assert comparison.error == 0.0
    assert passes or "it is 0 exactly" in comparison.problems[0]


def test_an_included_comparison_counts_and_says_its_name():
    outer, inner = comparison_with(ARRAY), comparison_with(ARRAY, tolerance=1e-10)
    inner.output("out.y", ARRAY * (1 + 1e-9))
    outer.include(inner, "float64")
    assert outer.compared == {"out.y"}
    assert outer.problems == ["float64: out.y: relative error 1.0e-09"]
    assert outer.notes == ["float64: worst relative error 1.0e-09 (allowed 1e-10)  out.y"]
