import pytest
from golden_cases import cases_of, check

from sepc_tf.parity import dense


@pytest.mark.parametrize("name", cases_of(dense))
def test_case(name):
    check(name)
