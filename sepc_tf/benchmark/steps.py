"""Measures training steps of whole detectors, in time and in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from sepc_tf.benchmark.measure import (
    environment,
    environment_line,
    in_new_process,
    interleaved,
    status_kb,
)
from sepc_tf.config import load_config
from sepc_tf.ops.bitmaps import pack_masks
from sepc_tf.progress import track
from sepc_tf.training.optimizers import make_optimizer
from sepc_tf.training.schedules import make_schedule
from sepc_tf.zoo import build_detector

NUM_CLASSES = 80
OBJECTS = 8  # of an image


def training_step(
    configs: list[str],
    overrides: list[str] = (),
    size: tuple[int, int] = (800, 1344),
    batch: int = 1,
    repeats: int = 5,
) -> dict:
    """Time and peak memory of a training step of detectors, on random images and objects.

    Args:
        configs: as in `load_config`.
        overrides: dotted, for each of them.
        size: height and width of the images, multiples of `data.size_divisor`.
        batch: images.
        repeats: rounds of the timing; the detectors take turns.

    Returns:
        A dict that `json` can write: `environment`, `size`, `batch` and `rows`, of `config`, `ms`
        and `best_ms` (median and smallest), and `mb`, the most that a process held which did
        nothing but two steps, TensorFlow and the weights included.
    """
    report = {"environment": environment(), "size": list(size), "batch": batch, "rows": []}
    peaks = {}
    for config in track(configs, description="memory"):
        arguments = (config, list(overrides), list(size), batch)
        peaks[config] = in_new_process(
            __name__, "_peak", *arguments, MALLOC_MMAP_THRESHOLD_="65536"
        )
    calls = {config: call(config, overrides, size, batch) for config in configs}
    for config, seconds in interleaved(calls, repeats).items():
        median, best = float(np.median(seconds) * 1e3), float(seconds.min() * 1e3)
        row = {"config": config, "ms": median, "best_ms": best, "mb": peaks[config]}
        report["rows"].append(row)
    return report


def _peak(*arguments):
    step = call(*arguments)
    for _ in range(2):
        step()
    return status_kb("VmHWM") / 1024


def call(config: str, overrides: list[str], size: tuple[int, int], batch: int) -> Callable:
    """A function without arguments that does one training step."""
    config = load_config(config, overrides)
    detector = build_detector(config.detector, NUM_CLASSES, config.data.size_divisor)
    settings = config.train.optimizer
    detector.compile(
        optimizer=make_optimizer(settings, make_schedule(config.train, 1000)),
        clip_norm=settings.clip_norm,
        weight_decay=settings.weight_decay,
        jit_compile=config.train.jit_compile,
    )
    detector.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(problem(size, batch)).repeat())
    return functools.partial(detector.train_function, batches)


def problem(size: tuple[int, int], batch: int) -> dict[str, Any]:
    """A batch of noise, with objects of 16 pixels to half of the image, and masks of ellipses."""
    rng = np.random.default_rng(0)
    height, width = size
    boxes, packed = np.zeros((batch, OBJECTS, 4), np.float32), []
    for image in range(batch):
        masks = []
        for number in range(OBJECTS):
            h, w = (int(np.exp(rng.uniform(np.log(16), np.log(side / 2)))) for side in size)
            y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
            boxes[image, number] = x, y, x + w, y + h
            rows, columns = np.ogrid[:h, :w]
            mask = np.zeros(size, bool)
            mask[y : y + h, x : x + w] = ((rows - h / 2) / h) ** 2 + (
                (columns - w / 2) / w
            ) ** 2 <= 0.25
            masks.append(mask)
        packed.append(pack_masks(masks))
    length = max(len(bitmaps) for bitmaps, _, _ in packed)
    return {
        "images": rng.integers(0, 256, (batch, height, width, 3)).astype(np.uint8),
        "pixel_mean": np.full((batch, 3), 120, np.float32),
        "pixel_std": np.full((batch, 3), 58, np.float32),
        "image_sizes": np.tile(np.int32([size]), [batch, 1]),
        "boxes": boxes,
        "labels": rng.integers(0, NUM_CLASSES, (batch, OBJECTS)).astype(np.int32),
        "bitmaps": np.stack([np.pad(b, (0, length - len(b))) for b, _, _ in packed]),
        "frames": np.stack([frames for _, frames, _ in packed]),
        "offsets": np.stack([offsets for _, _, offsets in packed]),
    }


def training_step_markdown(report: dict) -> str:
    """The report as a table."""
    height, width = report["size"]
    lines = [
        environment_line(report["environment"]),
        f"Images of {height} x {width}, {report['batch']} a step.",
        "",
        "| config | ms | best ms | peak MB |",
        "|" + " --- |" * 4,
    ]
    for row in report["rows"]:
        mb = "not measured" if row["mb"] is None else f"{row['mb']:.0f}"
        lines.append(f"| {row['config']} | {row['ms']:.0f} | {row['best_ms']:.0f} | {mb} |")
    return "\n".join(lines)
