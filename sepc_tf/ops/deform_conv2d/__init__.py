"""Deformable convolution (DCNv1 and v2) with hand-derived gradients, for every TensorFlow device.

All forms compute the same thing: the portable one (`"xla"`, `portable.py`) is made of TensorFlow
operations, the native one (`"native"`, `native.py`) is a C++ kernel for the CPU, and the one for
other runtimes (`"unrolled"`, `unrolled.py`) has no loops. `api.py` holds the entry point and the
table of forms.
"""

from sepc_tf.ops.deform_conv2d.api import (
    FORMS,
    IMPLEMENTATIONS,
    Form,
    deform_conv2d,
    deform_conv2d_implementation,
    portable_ops,
)
from sepc_tf.ops.deform_conv2d.geometry import Geometry
from sepc_tf.ops.deform_conv2d.portable import (
    BLOCK_NUMBERS,
    portable_backward,
    portable_forward,
)

__all__ = [
    "BLOCK_NUMBERS",
    "FORMS",
    "IMPLEMENTATIONS",
    "Form",
    "Geometry",
    "deform_conv2d",
    "deform_conv2d_implementation",
    "portable_backward",
    "portable_forward",
    "portable_ops",
]
