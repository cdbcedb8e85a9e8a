"""Seeing what is wrong: the analysis of a run, two runs compared, anchors for a data set."""

from sepc_tf.analysis.detections import run_detections
from sepc_tf.analysis.report import analyze

__all__ = ["analyze", "run_detections"]
