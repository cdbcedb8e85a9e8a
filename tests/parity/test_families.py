import json
from types import SimpleNamespace

import pytest

from sepc_tf.parity import check_case
from sepc_tf.parity.families import FAMILIES, check_of

pytestmark = pytest.mark.same_on_both_stacks


def test_every_golden_case_belongs_to_one_family(golden_dir):
    cases = json.loads((golden_dir / "manifest.json").read_text())["cases"]
    for case in cases.values():
        check, tolerance = check_of(case["config"])
        assert callable(check) and 0 < tolerance <= 1e-4
    for family in FAMILIES:
        assert any(family.check_of(case["config"]) for case in cases.values()), family


@pytest.mark.parametrize(
    "config",
    [
        {"iou_thr": 0.5},
        {"head": {"type": "FCOSHead"}},  # not RetinaNet's, though it is a head
        {"backbone": {}, "part_deform": True},  # of two families
    ],
)
def test_a_config_of_no_family_or_of_two_is_said(config):
    with pytest.raises(ValueError, match="must fit one of"):
        check_of(config)
    case = SimpleNamespace(name="made up", config=config, data={}, output_specs={})
    comparison = check_case(case)
    assert not comparison.passed and "must fit one of" in str(comparison)
