"""What surrounds a call, and the private names that tell."""

import runpy

import pytest
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.ops import control_flow_util
from tensorflow.python.saved_model import save_context

from sepc_tf.ops.deform_conv2d import context


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (control_flow_util, "GraphOrParentsInXlaContext"),
        (save_context, "in_save_context"),
        (xla, "custom_call_v2"),
    ],
)
def test_a_tensorflow_without_a_private_name_is_refused(module, name, monkeypatch):
    monkeypatch.delattr(module, name)
    with pytest.raises(ImportError, match=rf"private names of TensorFlow.*lacks one.*{name}"):
        runpy.run_path(context.__file__)
