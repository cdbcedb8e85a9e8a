import pytest
from golden_cases import cases_of, check

from sepc_tf.ops import native
from sepc_tf.parity import OPERATOR_TOLERANCE, Comparison, load_cases, operators
from sepc_tf.parity.operators import check_deform_conv


@pytest.mark.parametrize("name", cases_of(operators))
def test_case(name):
    check(name)


@pytest.mark.parametrize(
    ("implementation", "compiled"),
    [("xla", None), ("xla", False), ("xla", True), ("native", False), ("native", True)],
)
def test_deformable_convolution_in_every_implementation(golden_dir, implementation, compiled):
    if implementation == "native" and not native.available():
        pytest.skip("no compiler for the C++ operations, or SEPC_TF_NATIVE=0")
    for case in load_cases(golden_dir, "deform_conv_*"):
        comparison = Comparison(case, OPERATOR_TOLERANCE)
        check_deform_conv(case, comparison, implementation, compiled)
        assert comparison.finish().passed, str(comparison)
