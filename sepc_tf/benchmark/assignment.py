"""Measures what it takes to decide which anchor learns what, in memory and in time."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from sepc_tf.backbones.resnet import ResNet
from sepc_tf.benchmark.measure import (
    environment,
    environment_line,
    in_new_process,
    interleaved,
    peak_mb,
)
from sepc_tf.detectors.free_anchor import FreeAnchor
from sepc_tf.necks.fpn import FPN
from sepc_tf.necks.towers import ConvTowers
from sepc_tf.ops.anchors import AnchorGenerator
from sepc_tf.ops.matching import EffectiveAreaMatcher, MaxIoUMatcher
from sepc_tf.progress import track

# The pyramid of a 800 x 1333 image: 22400 cells, 201600 anchors at nine a cell.
LEVEL_SIZES = ((100, 167), (50, 84), (25, 42), (13, 21), (7, 11))
IMAGE_SIZE = (800, 1333)
NUM_CLASSES = 80
MATCHERS = {
    "MaxIoUMatcher": (MaxIoUMatcher(), AnchorGenerator()),
    "EffectiveAreaMatcher": (
        EffectiveAreaMatcher(),
        AnchorGenerator(octave_base=1.0, scales_per_octave=1, ratios=(1.0,)),
    ),
}
# What is measured -> whose it is.
PARTS = {
    "MaxIoUMatcher": "RetinaNet",
    "EffectiveAreaMatcher": "FSAF",
    "select_bags": "FreeAnchor",
    "coverage": "FreeAnchor",
    "negative_losses": "FreeAnchor, forward + backward",
}


def label_assignment(
    counts: tuple[int, ...] = (8, 32, 128, 256, 512),
    timed_counts: tuple[int, ...] = (8, 32),
    repeats: int = 15,
) -> dict:
    """Peak memory and time of label assignment for one image of 800 x 1333.

    In graph mode with unknown shapes, as training runs it, and compiled by XLA. Memory: a process
    for each part and mode; how far the peak exceeds what was held before the call, outputs
    included. Time: the parts run in turn in this process.

    Args:
        counts: numbers of objects for memory.
        timed_counts: numbers of objects for time.
        repeats: rounds of the timing.

    Returns:
        A dict that `json` can write: `environment`, `memory` and `times`, lists of rows of
        `part`, `compiled`, `objects` and `mb`, or `ms` and `best_ms` (median and smallest).
    """
    report = {"environment": environment(), "memory": [], "times": []}
    for part, compiled in track(
        list(itertools.product(PARTS, (False, True))), description="memory"
    ):
        peaks = in_new_process(
            __name__, "_peaks", part, compiled, list(counts), MALLOC_MMAP_THRESHOLD_="65536"
        )
        report["memory"] += [
            {"part": part, "compiled": compiled, "objects": objects, "mb": mb}
            for objects, mb in zip(counts, peaks or [None] * len(counts))
        ]
    cases = list(itertools.product((False, True), timed_counts))
    for compiled, objects in track(cases, description="timing"):
        calls = {part: call(part, objects, compiled) for part in PARTS}
        for part, seconds in interleaved(calls, repeats).items():
            case = {"part": part, "compiled": compiled, "objects": objects}
            median, best = float(np.median(seconds) * 1e3), float(seconds.min() * 1e3)
            report["times"].append({**case, "ms": median, "best_ms": best})
    return report


def _peaks(part, compiled, counts):
    return [peak_mb(call(part, objects, compiled)) for objects in counts]


def call(part: str, objects: int, compiled: bool) -> Callable[[], Any]:
    """A function without arguments that does one of `PARTS` for an image of `objects` boxes."""
    function, arguments = _problem(part, objects)
    # As in training only the sizes of a box and of a class vector are known; XLA knows all.
    last = [x.shape[-1] if x.dtype == tf.float32 else None for x in arguments]
    unknown = [
        tf.TensorSpec([None] * (x.shape.rank - 1) + [size], x.dtype)
        for x, size in zip(arguments, last)
    ]
    signature = None if compiled else unknown
    traced = tf.function(function, input_signature=signature, jit_compile=compiled)
    return functools.partial(traced, *arguments)


def _problem(part, objects):
    """The function that a part is, and its arguments."""
    rng = np.random.default_rng(0)
    height, width = IMAGE_SIZE
    corner = rng.uniform(0, 1, (1, objects, 2)) * (width - 100, height - 100)
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (1, objects, 2)))
    boxes = np.concatenate([corner, np.minimum(corner + sides, (width, height))], axis=-1)
    boxes = tf.constant(boxes, tf.float32)
    if part in MATCHERS:
        matcher, generator = MATCHERS[part]
        anchors = tf.concat(generator(LEVEL_SIZES), axis=0)
        present, valid = tf.fill([1, objects], True), tf.fill([1, len(anchors)], True)
        return matcher, [anchors, boxes, present, valid]

    detector = FreeAnchor.from_parts(
        ResNet(18, width=8), FPN(8), ConvTowers(8, num_convs=1), NUM_CLASSES
    )
    anchors = tf.concat(AnchorGenerator()(LEVEL_SIZES), axis=0)
    if part == "select_bags":
        return detector.select_bags, [anchors, boxes]
    if part == "coverage":
        codes = tf.constant(rng.normal(0, 0.3, (1, len(anchors), 4)), tf.float32)
        labels = tf.constant(rng.integers(0, NUM_CLASSES, (1, objects)), tf.int32)
        return detector.coverage, [anchors, codes, boxes, labels]

    def negative_losses(logits, covered):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = tf.reduce_sum(detector.negative_losses(logits, covered))
        return loss, tape.gradient(loss, logits)

    logits = rng.standard_normal((1, len(anchors), NUM_CLASSES), np.float32) - 4
    return negative_losses, [tf.constant(logits), tf.constant(np.maximum(logits + 3, 0) / 4)]


def assignment_markdown(report: dict) -> str:
    """The report as the tables of `docs/results/label_assignment.md`."""
    header, columns = ["part", "mode"], []
    for rows, key, unit in ((report["memory"], "mb", "MB"), (report["times"], "ms", "ms")):
        values = {(row["part"], row["compiled"], row["objects"]): row[key] for row in rows}
        for objects in dict.fromkeys(row["objects"] for row in rows):
            header.append(f"{unit}, M = {objects}")
            columns.append((values, objects))
    lines = [
        environment_line(report["environment"]),
        "",
        f"| {' | '.join(header)} |",
        "|" + " --- |" * len(header),
    ]
    for part, user in PARTS.items():
        for compiled in (False, True):
            cells = [f"{part} ({user})", "jit" if compiled else "graph"]
            for values, objects in columns:
                value = values[part, compiled, objects]
                cells.append("not measured" if value is None else f"{value:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
