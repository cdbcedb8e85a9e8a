"""Every golden case, as `scripts/check_parity.py` runs it; the command on damaged folders."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SHARED

from sepc_tf.ops import native
from sepc_tf.parity import (
    OPERATOR_TOLERANCE,
    Comparison,
    check_case,
    check_deform_conv,
    compare_gradients,
    load_cases,
)

SCRIPT = Path(__file__).parents[2] / "scripts/check_parity.py"
GOLDEN = SHARED / "golden"
SMALL = "deform_conv_s1p0_tiny"


def case_names():
    """The names in the manifest, the heavy ones marked; one placeholder where there is none."""
    if not (GOLDEN / "manifest.json").is_file():
        return [pytest.param("", marks=pytest.mark.skip(f"no golden data at {GOLDEN}"))]
    names = json.loads((GOLDEN / "manifest.json").read_text())["cases"]
    heavy = ("detector_", "backbone_", "sepc_")
    return [pytest.param(n, marks=[pytest.mark.slow] * n.startswith(heavy)) for n in names]


@pytest.mark.parametrize("name", case_names())
def test_case(name):
    (case,) = load_cases(GOLDEN, name)
    comparison = check_case(case)
    assert comparison.passed, str(comparison)


@pytest.mark.parametrize(
    ("implementation", "compiled"),
    [("xla", None), ("xla", False), ("xla", True), ("native", False), ("native", True)],
)
def test_deformable_convolution_in_every_implementation(golden_dir, implementation, compiled):
    if implementation == "native" and not native.available():
        pytest.skip("no compiler for the C++ operations, or SEPC_TF_NATIVE=0")
    for case in load_cases(golden_dir, "deform_conv_*"):
        comparison = Comparison(case, OPERATOR_TOLERANCE)
        check_deform_conv(case, comparison, implementation, compiled)
        assert comparison.finish().passed, str(comparison)


@pytest.fixture
def folder(golden_dir, tmp_path):
    """A golden folder with a single small case, to be damaged."""
    for name in ("recipe.py", f"{SMALL}.npz"):
        shutil.copy(golden_dir / name, tmp_path / name)
    manifest = json.loads((golden_dir / "manifest.json").read_text())
    manifest["cases"] = {SMALL: manifest["cases"][SMALL]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs the command in this process; returns exit status, standard output and error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["check_parity.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        printed = capsys.readouterr()
        return stopped.value.code, printed.out, printed.err

    return run


def change(folder, change_arrays):
    path = folder / f"{SMALL}.npz"
    with np.load(path) as file:
        arrays = dict(file)
    change_arrays(arrays)
    np.savez(path, **arrays)


def test_a_right_case_passes(script, folder):
    code, out, _ = script("--golden", folder)
    assert code == 0
    lines = out.strip().splitlines()
    assert lines[0].startswith(f"pass  {SMALL}") and lines[-1] == "1 passed, 0 failed"


def test_one_wrong_element_fails(script, folder):
    def add(arrays):
        arrays["out.grad_offset"].ravel()[3] += 1e-3 * np.abs(arrays["out.grad_offset"]).max()

    change(folder, add)
    code, out, _ = script("--golden", folder, "--case", "deform_*")
    assert code == 1
    assert "out.grad_offset: relative error 1.0e-03" in out
    assert out.strip().endswith("0 passed, 1 failed")


def test_nan_an_output_left_out_and_a_missing_file_fail(script, folder):
    def damage(arrays):
        arrays["out.y"].ravel()[0] = np.nan

    change(folder, damage)
    code, out, _ = script("--golden", folder)
    assert code == 1 and "out.y: relative error nan" in out

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"][SMALL]["outputs"]["out.extra"] = {"shape": [1], "slices": None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, out, _ = script("--golden", folder)
    assert code == 1 and "out.extra: not compared" in out

    (folder / f"{SMALL}.npz").unlink()
    code, out, _ = script("--golden", folder)
    assert code == 1 and "FileNotFoundError" in out and "0 passed, 1 failed" in out


def test_no_golden_folder_and_no_matching_case(script, folder, tmp_path):
    code, _, error = script("--golden", folder, "--case", "two_stage_*")
    assert code == 2 and "matches 'two_stage_*'" in error
    code, _, error = script("--golden", tmp_path / "nowhere")
    assert code == 2 and "is no golden folder: it has no manifest.json" in error


def made_up_gradients(float32_error, stored_error, rounding):
    """The comparison of one gradient whose float64 values are known, with errors put in."""
    rng = np.random.default_rng(0)
    exact = rng.standard_normal(1000)
    direction = rng.standard_normal(1000)
    stored = exact + stored_error * direction
    spec = {
        "shape": [1000],
        "slices": [[0, None, 8]],
        "mean": stored.mean(),
        "std": stored.std(),
        "abssum": np.abs(stored).sum(),
    }
    case = SimpleNamespace(
        name="made up", data={"out.grad": stored[::8]}, output_specs={"out.grad": spec}
    )
    comparison = Comparison(case, 1e-4)
    compare_gradients(
        case,
        comparison,
        {"out.grad": exact + float32_error * direction},
        lambda: (
            lambda seed=None: {"out.grad": exact if seed is None else exact + rounding * direction}
        ),
    )
    return comparison.finish()


@pytest.mark.parametrize(
    ("float32_error", "stored_error", "rounding", "passes"),
    [
        (1e-6, 0.0, 0.0, True),  # within the tolerance at once
        (1e-2, 0.0, 0.0, True),  # only our float32 jumped
        (0.0, 1e-2, 2e-2, True),  # theirs jumped, by less than rounding does
        (0.0, 1e-2, 5e-3, False),  # by more
        (0.0, 1e-2, 0.0, False),  # rounding moves nothing: theirs is another gradient
    ],
)
def test_gradients_may_be_off_only_by_what_rounding_does(
    float32_error, stored_error, rounding, passes
):
    comparison = made_up_gradients(float32_error, stored_error, rounding)
    assert comparison.passed == passes, str(comparison)
    assert passes or "more than the" in comparison.problems[0]
