import pytest
from golden_cases import cases_of, check

from sepc_tf.parity import two_stage


@pytest.mark.parametrize("name", cases_of(two_stage))
def test_case(name):
    check(name)
