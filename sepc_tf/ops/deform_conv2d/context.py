"""What surrounds a call: XLA, a SavedModel, an accelerator. TensorFlow's private names are here."""

from __future__ import annotations

import tensorflow as tf

try:
    from tensorflow.compiler.tf2xla.python.xla import custom_call_v2
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext
    from tensorflow.python.saved_model.save_context import in_save_context
except ImportError as error:
    raise ImportError(
        f"deform_conv2d uses private names of TensorFlow, and TensorFlow {tf.__version__} lacks "
        f"one: {error}. Install one of the versions that sepc-tf was tested with, 2.15 or 2.21"
    ) from error

__all__ = ["accelerated", "compiling_with_xla", "custom_call_v2", "saving"]


def compiling_with_xla() -> bool:
    """Whether the function being traced, or one around it, is compiled by XLA."""
    if tf.executing_eagerly():
        return False
    return GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def saving() -> bool:
    """Whether the call is traced to be written into a SavedModel."""
    return in_save_context()


def accelerated() -> bool:
    """Whether TensorFlow may use anything but the CPU."""
    devices = tf.config.get_visible_devices()
    return any(device.device_type not in ("CPU", "XLA_CPU") for device in devices)
