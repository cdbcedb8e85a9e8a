import pytest

from sepc_tf.ops import native


@pytest.fixture(scope="session")
def native_or_skip():
    if not native.available():
        pytest.skip("no compiler for the C++ operations, or SEPC_TF_NATIVE=0")
