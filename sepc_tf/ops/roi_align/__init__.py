"""RoIAlign over the levels of a pyramid, with a hand-derived gradient, for every TensorFlow device.

`geometry.py` says which level a box reads and where, `portable.py` computes it with TensorFlow's
own operations, `api.py` is the entry point.
"""

from sepc_tf.ops.roi_align.api import roi_align
from sepc_tf.ops.roi_align.geometry import roi_levels

__all__ = ["roi_align", "roi_levels"]
