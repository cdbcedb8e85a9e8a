"""The golden cases of one family, as parameters of its test."""

import json

import pytest
from conftest import SHARED

from sepc_tf.parity import check_case, load_cases

FOLDERS = ("golden", "golden_zoo", "golden_two_stage")
# Of the addons stack left out: what is long there, and of which a shorter case has all the layers.
SAME = (
    *("neck_nasfpn_train", "neck_nasfpn_eval", "faster_"),
    *("sepc_pad0_", "sepc_pad1_pconv_", "sepc_pad1_ibn_", "sepc_pad1_sepclite_"),
    *("detector_retina_pconv", "detector_fsaf_", "detector_freeanchor_"),
)
# Minutes each; the other cases have the same layers.
BY_COMMAND = tuple(
    f"golden_two_stage/{name}"
    for name in (
        *("faster_pconv_step", "faster_pconv_ibn_step", "mask_step"),
        *("htc_cascade", "htc_step", "htc_nosem_step", "htc_nosem_test"),
    )
)
SLOW = ("detector_", "backbone_", "sepc_", "neck_nasfpn_train", "faster_", "mask_", "htc_")


def configs_of(folder):
    """Name -> config of every case of a golden folder; empty where there is no such folder."""
    path = SHARED / folder / "manifest.json"
    cases = json.loads(path.read_text())["cases"] if path.is_file() else {}
    return {name: case["config"] for name, case in cases.items()}


def cases_of(family):
    """A family's cases as `folder/name`, the long ones marked; one skipped placeholder if none.

    Args:
        family: a module of `sepc_tf.parity.families.FAMILIES`.
    """
    found = [
        pytest.param(
            f"{folder}/{name}",
            marks=[pytest.mark.slow] * name.startswith(SLOW)
            + [pytest.mark.same_on_both_stacks] * name.startswith(SAME),
        )
        for folder in FOLDERS
        for name, config in configs_of(folder).items()
        if family.check_of(config)
    ]
    for case in found:
        if case.values[0] in BY_COMMAND:
            case.marks.append(pytest.mark.skip("takes minutes: sepc-tf check-parity runs it"))
    return found or [pytest.param("", marks=pytest.mark.skip(f"no golden data at {SHARED}"))]


def check(name):
    """Computes one case `folder/name` and returns its `Comparison`, having asserted it passed."""
    folder, _, name = name.partition("/")
    (case,) = load_cases(SHARED / folder, name)
    comparison = check_case(case)
    assert comparison.passed, str(comparison)
    return comparison
