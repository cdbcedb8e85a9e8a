"""Measures speed and memory."""

from sepc_tf.benchmark.assignment import assignment_markdown, label_assignment
from sepc_tf.benchmark.deformable import MAPS, deform_conv, markdown
from sepc_tf.benchmark.pooling import roi_align, roi_align_markdown

__all__ = [
    "MAPS",
    "assignment_markdown",
    "deform_conv",
    "label_assignment",
    "markdown",
    "roi_align",
    "roi_align_markdown",
]
