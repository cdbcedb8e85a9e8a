import pytest
from golden_cases import cases_of, check

from sepc_tf.parity import fusion


@pytest.mark.parametrize("name", cases_of(fusion))
def test_case(name):
    check(name)


def test_a_neck_of_mmdetection_as_an_entry_of_a_config():
    fpn = {"type": "FPN", "in_channels": [4, 4, 4, 4], "out_channels": 8, "num_outs": 5}
    assert fusion.neck_config(fpn) == {
        "type": "fpn",
        "filters": 8,
        "num_levels": 5,
        "min_level": 2,
        "extra_levels": "pool",
        "extra_relu": False,
        "norm": None,
    }
    retina = fusion.neck_config({**fpn, "start_level": 1, "add_extra_convs": True})
    assert retina["min_level"] == 3 and retina["extra_levels"] == "c5"
