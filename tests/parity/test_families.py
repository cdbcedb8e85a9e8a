from types import SimpleNamespace

import pytest
from golden_cases import FOLDERS, configs_of

from sepc_tf.parity import check_case
from sepc_tf.parity.families import FAMILIES, check_of


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_golden_case_belongs_to_one_family(folder):
    configs = configs_of(folder)
    if not configs:
        pytest.skip(f"no folder {folder} of golden data (set SEPC_TF_SHARED)")
    for config in configs.values():
        if folder == "golden" or any(family.check_of(config) for family in FAMILIES):
            check, tolerance = check_of(config)
            assert callable(check) and 0 < tolerance <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_cases(family, golden_dir):
    configs = [config for folder in FOLDERS for config in configs_of(folder).values()]
    assert any(family.check_of(config) for config in configs)


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
