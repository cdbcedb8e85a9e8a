"""What a training sets for the process comes back."""

import keras
import numpy as np
import pytest
from tensorflow.python.framework import config as framework_config

from sepc_tf.training.global_state import global_state


def state():
    return keras.mixed_precision.global_policy().name, framework_config.is_op_determinism_enabled()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_precision_and_determinism_come_back(error):
    before = state()
    try:
        with global_state(seed=3, deterministic=True, precision="mixed_bfloat16"):
            assert state() == ("mixed_bfloat16", True)
            first = np.random.random()
            if error:
                raise error
    except (KeyboardInterrupt, ValueError) as raised:
        assert type(raised) is error
    assert state() == before == ("float32", False)
    with global_state(seed=3, deterministic=False, precision=None):
        assert state() == ("float32", False)
        assert np.random.random() == first


def test_determinism_of_before_stays():
    with global_state(seed=0, deterministic=True, precision=None):
        with global_state(seed=0, deterministic=True, precision=None):
            pass
        assert state() == ("float32", True)
    assert state() == ("float32", False)
