import pytest
from golden_cases import cases_of, check

from sepc_tf.parity import reppoints


@pytest.mark.parametrize("name", cases_of(reppoints))
def test_case(name):
    check(name)
