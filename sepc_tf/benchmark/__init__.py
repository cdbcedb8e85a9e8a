"""Measures speed and memory."""

from sepc_tf.benchmark.assignment import assignment_markdown, label_assignment
from sepc_tf.benchmark.deformable import MAPS, deform_conv, markdown

__all__ = ["MAPS", "assignment_markdown", "deform_conv", "label_assignment", "markdown"]
