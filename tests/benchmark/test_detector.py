"""The paper's speed test on a tiny detector, beside the paper's figures."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.benchmark import detector_markdown, detector_speed, table_1
from sepc_tf.benchmark.detector import CANDIDATES, PAPER_MS, _threshold_for_candidates
from sepc_tf.config import load_config
from sepc_tf.data.preprocess import preprocess_image
from sepc_tf.zoo import build_detector

TINY = ["detector.backbone.width=4", "detector.head.filters=8", "data.test_short_side=64"]


def test_table_1_has_the_papers_figures_and_a_ratio_to_each_baseline(monkeypatch):
    monkeypatch.setattr("sepc_tf.benchmark.detector._call", lambda config, images: lambda: None)
    groups = [{name: load_config(name) for name in names} for names in table_1()]
    rows = detector_speed(groups, batch=1, warmup=1, repeats=3)["rows"]
    assert [row["paper_ms"] for row in rows] == [
        ms for figures in PAPER_MS.values() for ms in figures.values()
    ]
    by_name = {row["name"]: row for row in rows}
    # The paper says of RetinaNet with SEPC: 22 % above its baseline.
    assert by_name["retinanet_r50_sepc_1x"]["paper_ratio"] == pytest.approx(1.22, abs=0.005)
    assert by_name["fsaf_r50_baseline_1x"]["paper_ratio"] == 1.0


def test_times_of_detectors_become_a_table():
    configs = {name: load_config(name, TINY) for name in ("demo_baseline", "demo_sepc_lite")}
    report = detector_speed([configs], batch=1, warmup=1, repeats=2)
    baseline, other = report["rows"]
    assert baseline["ratio"] == 1.0 and other["ratio"] > 0.1 and other["mean_ms"] > 0.1
    last = detector_markdown(report).splitlines()[-1]
    assert last.startswith("| demo_sepc_lite | ") and last.endswith(" |  |  |")


def test_suppression_has_work_though_nothing_is_trained():
    config = load_config("demo_baseline", TINY)
    detector = build_detector(config.detector, 80)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8))
    threshold = _threshold_for_candidates(detector, config.data, images)
    normalised = preprocess_image(images, 64, 64, config.data.mean, config.data.std)
    _, scores = detector.scored_boxes(detector(normalised), tf.constant([[64, 64]]))
    assert abs(np.sum(scores > threshold) - CANDIDATES) < 0.02 * CANDIDATES
