"""Remark 1 of the paper: PConv extracts scale-invariant features from a Gaussian pyramid."""

import json

import pytest

from sepc_tf import cli
from sepc_tf.analysis.scale_invariance import changes_one_level_up


def relative_changes(kind, deformable=False):
    return [change.relative for change in changes_one_level_up(kind, deformable)]


@pytest.mark.parametrize("deformable", [False, True])
def test_gaussian_pyramid_gives_the_same_response_one_level_up(deformable):
    # A scale-equalising PConv too, while its offsets are zero.
    assert max(relative_changes("gaussian", deformable)) < 1e-3


@pytest.mark.parametrize("kind", ["subsampled", "growing"])
def test_other_pyramids_do_not(kind):
    assert min(relative_changes(kind)) > 0.1


@pytest.mark.same_on_both_stacks
def test_the_command_draws_it(tmp_path, capsys):
    assert cli.main(["analyze", "scale-invariance", "--out", str(tmp_path)]) == 0
    assert "gaussian: change of the response 0.00" in capsys.readouterr().out
    found = json.loads((tmp_path / "scale_invariance.json").read_text())
    assert list(found) == ["gaussian", "subsampled", "growing"]
    assert (tmp_path / "scale_invariance.png").read_bytes().startswith(b"\x89PNG")
