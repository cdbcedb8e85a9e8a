import pytest
from golden_cases import cases_of, check

from sepc_tf.parity import two_stage_detectors


@pytest.mark.parametrize("name", cases_of(two_stage_detectors))
def test_case(name):
    check(name)
