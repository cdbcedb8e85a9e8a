"""The command `scripts/check_parity.py`, on a good folder and on damaged ones."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/check_parity.py"
SMALL = "deform_conv_s1p0_tiny"


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


def test_cases_of_several_folders(script, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other, ignore=lambda *_: ["other"])
    code, out, _ = script("--golden", folder, other)
    assert code == 0 and out.strip().endswith("2 passed, 0 failed")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["cases"] = {"unheard_of": {**manifest["cases"][SMALL], "config": {"kind": "new"}}}
    (other / "manifest.json").write_text(json.dumps(manifest))
    code, out, _ = script("--golden", folder, other)
    assert code == 1 and "FAIL  unheard_of" in out and out.strip().endswith("1 passed, 1 failed")
    assert "the config of a case must fit one of" in out
    code, out, _ = script("--golden", folder, other, "--case", "deform_*")  # of one folder only
    assert code == 0 and out.strip().endswith("1 passed, 0 failed")


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
