"""The golden cases of one family, as parameters of its test."""

import json

import pytest
from conftest import SHARED

from sepc_tf.parity import check_case, load_cases

GOLDEN = SHARED / "golden"
SLOW = ("detector_", "backbone_", "sepc_")


def cases_of(family):
    """The names of a family's cases, the long ones marked; one skipped placeholder if none.

    Args:
        family: a module of `sepc_tf.parity.families.FAMILIES`.
    """
    if not (GOLDEN / "manifest.json").is_file():
        return [pytest.param("", marks=pytest.mark.skip(f"no golden data at {GOLDEN}"))]
    cases = json.loads((GOLDEN / "manifest.json").read_text())["cases"]
    names = [name for name, case in cases.items() if family.check_of(case["config"])]
    return [pytest.param(n, marks=[pytest.mark.slow] * n.startswith(SLOW)) for n in names]


def check(name):
    """Computes one case and returns its `Comparison`, having asserted that it passed."""
    (case,) = load_cases(GOLDEN, name)
    comparison = check_case(case)
    assert comparison.passed, str(comparison)
    return comparison
