import pytest
from golden_cases import cases_of, check

from sepc_tf.parity import FLOAT64_TOLERANCE, necks


@pytest.mark.parametrize("name", cases_of(necks))
def test_case(name):
    comparison = check(name)
    if name.endswith("_train"):
        assert comparison.notes[0].startswith("float64: worst relative error")
        assert f"(allowed {FLOAT64_TOLERANCE:.0e})" in comparison.notes[0]
        assert not comparison.coarse
