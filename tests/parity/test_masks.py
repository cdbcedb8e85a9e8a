import pytest
from golden_cases import cases_of, check

from sepc_tf.parity import masks


@pytest.mark.parametrize("name", cases_of(masks))
def test_case(name):
    check(name)
