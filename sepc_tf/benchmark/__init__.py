"""Measures speed and memory."""

from sepc_tf.benchmark.assignment import assignment_markdown, label_assignment
from sepc_tf.benchmark.deformable import MAPS, deform_conv, markdown
from sepc_tf.benchmark.detector import detector_markdown, detector_speed, table_1
from sepc_tf.benchmark.exported import draw_exported, exported_markdown, exported_speed
from sepc_tf.benchmark.input import input_markdown, input_speed
from sepc_tf.benchmark.pooling import roi_align, roi_align_markdown
from sepc_tf.benchmark.training import training_markdown, training_speed

__all__ = [
    "MAPS",
    "assignment_markdown",
    "deform_conv",
    "detector_markdown",
    "detector_speed",
    "draw_exported",
    "exported_markdown",
    "exported_speed",
    "input_markdown",
    "input_speed",
    "label_assignment",
    "markdown",
    "roi_align",
    "roi_align_markdown",
    "table_1",
    "training_markdown",
    "training_speed",
]
