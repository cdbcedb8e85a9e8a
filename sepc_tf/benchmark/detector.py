"""Measures detectors by the paper's speed test: preprocessing, network, suppression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from sepc_tf.benchmark.measure import environment, environment_line, interleaved
from sepc_tf.config import Config
from sepc_tf.data.preprocess import pad_to_multiple, preprocess_image
from sepc_tf.detectors import RPN, DenseDetector, Detector
from sepc_tf.inference import detect_images
from sepc_tf.progress import track
from sepc_tf.zoo import build_detector

# Table 1, ResNet-50: detector type -> variant -> ms of an image on a 1080 Ti.
PAPER_MS = {
    "retinanet": {
        "baseline": 73.2,
        "dcn": 102.1,
        "pconv": 76.5,
        "pconv_ibn": 76.4,
        "sepc": 89.6,
        "sepc_lite": 78.5,
    },
    "fsaf": {
        "baseline": 62.4,
        "dcn": 85.2,
        "pconv": 66.0,
        "pconv_ibn": 66.1,
        "sepc": 77.4,
        "sepc_lite": 68.2,
    },
    "free_anchor": {
        "baseline": 76.4,
        "dcn": 100.4,
        "pconv": 79.4,
        "pconv_ibn": 79.7,
        "sepc": 89.9,
        "sepc_lite": 81.2,
    },
}
IMAGE_SIZE = (480, 640)  # of the images that come in: COCO's most frequent
NUM_CLASSES = 80
CANDIDATES = 1000  # of an image, that suppression gets


def table_1() -> list[list[str]]:
    """Names of the configs of the paper's Table 1, a list for each detector, baseline first."""
    return [
        [f"{kind}_r50_{variant}_1x" for variant in variants] for kind, variants in PAPER_MS.items()
    ]


def detector_speed(
    groups: Sequence[dict[str, Config]],
    batch: int = 8,
    warmup: int = 100,
    repeats: int = 200,
) -> dict:
    """Milliseconds for an image, from bytes to detections.

    The speed test of the paper's appendix 4.2: batches of 8, the mean of 200 calls from the 100th
    on, with preprocessing (images of 480 x 640 resized as in `data`), network and suppression. Here
    the detectors of a group take turns, so that what else the machine does falls on all of them,
    and the median stands beside the mean. Weights are as initialised; the scores of such a network
    are all below `score_threshold`, which is therefore set so that 1000 candidates of an image
    enter suppression (not in two-stage detectors, whose proposals do not depend on it).

    Args:
        groups: for each group the configs by name; the first of a group is compared with.
        batch: images in a call.
        warmup: calls of each detector before the timing.
        repeats: calls of each that are timed.

    Returns:
        A dict that `json` can write: `environment`, `batch`, `warmup`, `repeats` and `rows`, a list
        of `name`, `mean_ms` and `median_ms` of an image, `ratio` (median over the calls of the
        time divided by that of the group's first in the same round), and `paper_ms` and
        `paper_ratio`, None where Table 1 has no such row.

    Example:
        >>> tiny = ["detector.backbone.width=4", "data.test_short_side=64"]
        >>> configs = {"demo_baseline": load_config("demo_baseline", tiny)}
        >>> detector_speed([configs], batch=1, warmup=1, repeats=2)["rows"][0]["ratio"]
        1.0

    Source: paper, Table 1 and appendix 4.2.
    """
    report = {"environment": environment(), "batch": batch, "warmup": warmup, "repeats": repeats}
    report["rows"] = []
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, (batch, *IMAGE_SIZE, 3), np.uint8))
    for configs in track(groups, description="timing"):
        calls = {name: _call(config, images) for name, config in configs.items()}
        seconds = interleaved(calls, repeats, warmup)
        first = next(iter(configs))
        for name, times in seconds.items():
            paper, reference = (_paper_ms(configs[key]) for key in (name, first))
            report["rows"].append(
                {
                    "name": name,
                    "mean_ms": float(times.mean() * 1e3 / batch),
                    "median_ms": float(np.median(times) * 1e3 / batch),
                    "ratio": float(np.median(times / seconds[first])),
                    "paper_ms": paper,
                    "paper_ratio": paper and reference and paper / reference,
                }
            )
    return report


def _paper_ms(config):
    backbone = config.detector.backbone
    if (backbone.type, backbone.depth, backbone.width) != ("resnet", 50, 64):
        return None
    return PAPER_MS.get(config.detector.type, {}).get(config.detector.head.variant)


def _call(config, images):
    detector = build_detector(config.detector, NUM_CLASSES, config.data.size_divisor)
    if isinstance(detector, DenseDetector) and not isinstance(detector, RPN):
        detector.score_threshold = _threshold_for_candidates(detector, config.data, images[:1])

    @tf.function(autograph=False)
    def detect(images):
        return detect_images(detector, config.data, images)

    return lambda: tf.nest.map_structure(np.asarray, detect(images))


def _threshold_for_candidates(detector: Detector, data, images):
    """The score that `CANDIDATES` of an image's boxes and classes exceed."""
    detector.score_threshold = 0.0
    resized = preprocess_image(
        images, data.test_short_side, data.long_side, data.mean, data.std, data.channel_order
    )
    size = tf.shape(resized)[None, 1:3]
    outputs = detector(pad_to_multiple(resized, data.size_divisor), training=False)
    _, scores = detector.scored_boxes(outputs, size)
    return float(np.sort(scores, axis=None)[-CANDIDATES:][0])


def detector_markdown(report: dict) -> str:
    """The report of `detector_speed` as a table."""
    lines = [
        environment_line(report["environment"]),
        f"Batches of {report['batch']}, {report['warmup']} calls to warm up, then "
        f"{report['repeats']} calls of each in turn.",
        "",
        "| config | ms, mean | ms, median | ratio | paper, ms | paper, ratio |",
        "|" + " --- |" * 6,
    ]
    for row in report["rows"]:
        ms, ratio = (
            "" if row[key] is None else f"{row[key]:{form}}"
            for key, form in (("paper_ms", ".1f"), ("paper_ratio", ".2f"))
        )
        lines.append(
            f"| {row['name']} | {row['mean_ms']:.1f} | {row['median_ms']:.1f} "
            f"| {row['ratio']:.2f} | {ms} | {ratio} |"
        )
    return "\n".join(lines)
