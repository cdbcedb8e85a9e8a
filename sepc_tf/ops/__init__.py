"""Pure tensor functions: no Keras, no state."""

from sepc_tf.ops.deform_conv2d import deform_conv2d, deform_conv2d_implementation, portable_ops
from sepc_tf.ops.roi_align import roi_align

__all__ = ["deform_conv2d", "deform_conv2d_implementation", "portable_ops", "roi_align"]
