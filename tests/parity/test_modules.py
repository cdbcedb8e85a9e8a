"""A trained layer against made-up golden folders, of another seed, other sizes and channels."""

import functools
import json
import shutil

import numpy as np
import pytest

from sepc_tf.layers import PConv
from sepc_tf.parity import check_case, load_cases
from sepc_tf.parity.golden import level_inputs
from sepc_tf.parity.modules import COARSE_TOLERANCE, module_results

SIZES = ((5, 3), (3, 2), (2, 1))
CHANNELS = 6
SEED = "a"
NAME = "pconv_small_train"
ZERO = "out.grad.Pconv.1.bias"
GRADIENT = "out.grad.Pconv.0.weight"


def parameter_specs():
    specs = []
    for i in range(3):
        specs += [
            [f"Pconv.{i}.weight", [CHANNELS, CHANNELS, 3, 3], "pconv_w"],
            [f"Pconv.{i}.bias", [CHANNELS], "conv_b"],
        ]
    kinds = {"weight": "bn_w", "bias": "bn_b", "running_mean": "bn_mean", "running_var": "bn_var"}
    return specs + [[f"bn.{name}", [CHANNELS], kind] for name, kind in kinds.items()]


def spec_of(array, **more):
    array = np.asarray(array, np.float64)
    statistics = {"mean": array.mean(), "std": array.std(), "abssum": np.abs(array).sum()}
    slices = [[0, None, 2]] + [[None, None, 1]] * (array.ndim - 1) if array.ndim else None
    return {"shape": list(array.shape), "slices": slices, **statistics, **more}


def stored(arrays):
    return {key: array[::2] if np.ndim(array) else array for key, array in arrays.items()}


class Folder:
    """A golden folder with one trained PConv with iBN; `write` takes its numbers."""

    def __init__(self, path, recipe):
        self.path = path
        shutil.copy(recipe, path / "recipe.py")
        shapes = {
            f"{kind}.{i}": [3, CHANNELS, *size]
            for kind in ("x", "cot")
            for i, size in enumerate(SIZES)
        }
        self.case = {
            "file": f"{NAME}.npz",
            "config": {"iBN": True, "part_deform": False, "mode": "train"},
            "params": parameter_specs(),
            "inputs": [[f"{NAME}.{key}", shape, "normal"] for key, shape in shapes.items()],
        }
        self.write_case({})
        (case,) = load_cases(path)
        make = functools.partial(PConv, CHANNELS, deformable=False, normalization="integrated")
        self.exact, single = (
            module_results(case, make, {"y": level_inputs(case, "cot")}, dtype)
            for dtype in ("float64", "float32")
        )
        # Their float32 gradients are taken to be ours in float64, rounded.
        self.rounded = {key: np.float32(array) for key, array in self.exact.items()}
        self.rounded[ZERO] = single[ZERO]

    def write_case(self, arrays, noise=()):
        outputs = {key: spec_of(array) for key, array in arrays.items()}
        for key, distance in noise:
            outputs[key]["f64"] = distance
        manifest = {"seed": SEED, "cases": {NAME: {**self.case, "outputs": outputs}}}
        (self.path / "manifest.json").write_text(json.dumps(manifest))
        np.savez(self.path / f"{NAME}.npz", **stored(arrays))

    def write_reference(self, arrays, seed=SEED):
        (self.path / "f64").mkdir(exist_ok=True)
        outputs = {
            key: spec_of(array, **({"exact_zero": True} if key == ZERO else {}))
            for key, array in arrays.items()
        }
        entry = {"file": f"{NAME}.npz", "outputs": outputs}
        manifest = {"seed": seed, "cases": {NAME: entry}}
        (self.path / "f64" / "manifest.json").write_text(json.dumps(manifest))
        np.savez(self.path / "f64" / f"{NAME}.npz", **stored(arrays))

    def check(self):
        (case,) = load_cases(self.path)
        return check_case(case)


@pytest.fixture(scope="module")
def made(golden_dir, tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("golden"), golden_dir / "recipe.py")


@pytest.fixture
def folder(made):
    """The folder, with right numbers in it."""
    made.write_case(made.rounded)
    made.write_reference(made.exact)
    return made


def changed(arrays, key, relative):
    """The arrays with one element of `key` off by so much of the largest."""
    array = np.array(arrays[key])
    array[(0,) * array.ndim] += relative * np.abs(array).max()
    return {**arrays, key: array}


def test_everything_is_compared_in_float64(folder):
    comparison = folder.check()
    assert comparison.passed and not comparison.coarse, str(comparison)
    assert comparison.notes[0].startswith("float64: worst relative error")
    for key in (
        GRADIENT,
        "out.grad_x.2",
        "out.grad.bn.weight",
        "out.new.bn.running_var",
        "out.y.2",
    ):
        folder.write_reference(changed(folder.exact, key, 1e-9))
        comparison = folder.check()
        assert [p for p in comparison.problems if p.startswith(f"float64: {key}: ")], str(
            comparison
        )


def test_gradients_that_are_zero_exactly(folder):
    zero = folder.exact[ZERO]
    assert np.abs(zero).max() < 1e-12
    folder.write_reference({**folder.exact, ZERO: zero + 5e-10})
    assert folder.check().passed
    folder.write_reference({**folder.exact, ZERO: zero + 2e-9})
    assert f"float64: {ZERO}: absolute error 2.0e-09" in folder.check().problems[0]


def test_float32_outputs_and_statistics_are_compared_too(folder):
    for key in ("out.y.0", "out.new.bn.running_mean"):
        folder.write_case(changed(folder.rounded, key, 3e-4))
        assert folder.check().problems[0].startswith(f"{key}: relative error")


def test_the_float32_loss_is_compared_in_units_of_a_sum_of_random_signs(folder):
    (case,) = load_cases(folder.path)
    products = [
        folder.exact[f"out.y.{i}"] * case.inputs()[f"{NAME}.cot.{i}"] for i in range(len(SIZES))
    ]
    np.testing.assert_allclose(sum(map(np.sum, products)), folder.exact["out.loss"], rtol=1e-12)
    unit = np.sqrt(sum(np.sum(np.square(p)) for p in products))
    assert unit > 10 * np.abs(folder.exact["out.loss"])  # which cancels and is no measure
    for error, passes in ((0.9e-4, True), (1.2e-4, False)):
        loss = np.float64(folder.exact["out.loss"] + error * unit)
        folder.write_case({**folder.rounded, "out.loss": loss})
        assert folder.check().passed == passes


def test_a_reference_of_another_seed_and_one_without_its_file(folder):
    folder.write_reference(folder.exact, seed="other")
    assert f"seed 'other', expected {SEED!r}" in folder.check().problems[0]
    folder.write_reference(folder.exact)
    (folder.path / "f64" / f"{NAME}.npz").unlink()
    assert "FileNotFoundError" in folder.check().problems[0]


@pytest.mark.parametrize("without", ["folder", "case"])
def test_without_a_reference_gradients_are_compared_with_float32(folder, without):
    if without == "folder":
        shutil.rmtree(folder.path / "f64")
    else:
        (folder.path / "f64" / "manifest.json").write_text(json.dumps({"seed": SEED, "cases": {}}))
    comparison = folder.check()
    assert comparison.passed and not comparison.coarse and not comparison.notes, str(comparison)


@pytest.mark.parametrize(
    ("error", "passes"), [(2e-2, True), (0.5 * COARSE_TOLERANCE, True), (1.0, False)]
)
def test_without_a_reference_what_misses_is_held_coarsely_and_said(folder, error, passes):
    shutil.rmtree(folder.path / "f64")
    folder.write_case(changed(folder.rounded, GRADIENT, error))
    comparison = folder.check()
    assert comparison.coarse == {GRADIENT}
    assert "no float64 reference: 1 of 11 gradients held to 0.26 only" in comparison.notes[0]
    assert GRADIENT in comparison.notes[0]
    assert comparison.passed == passes, str(comparison)


@pytest.mark.parametrize(("noise", "coarse"), [(0.03, set()), (0.01, {GRADIENT})])
def test_without_a_reference_a_stated_distance_from_float64_is_the_bound(folder, noise, coarse):
    shutil.rmtree(folder.path / "f64")
    folder.write_case(changed(folder.rounded, GRADIENT, 0.02), [(GRADIENT, noise)])
    comparison = folder.check()
    assert comparison.passed and comparison.coarse == coarse, str(comparison)
    assert ("authors' own float64 is, at most 3.0e-02" in comparison.notes[0]) == (not coarse)


def test_without_a_reference_zeros_are_held_to_the_size_of_biases(folder):
    shutil.rmtree(folder.path / "f64")
    size = max(
        np.abs(g).max() for k, g in folder.exact.items() if k.startswith("out.grad") and g.ndim == 1
    )
    folder.write_case({**folder.rounded, ZERO: folder.rounded[ZERO] + np.float32(0.4 * size)})
    comparison = folder.check()
    assert not comparison.passed and comparison.coarse == {ZERO}
