"""Measures the training step: its time, what takes it, and its memory."""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path
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
from sepc_tf.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from sepc_tf.progress import track
from sepc_tf.training.optimizers import make_optimizer
from sepc_tf.zoo import build_detector

NUM_CLASSES = 80
NUM_BOXES = 8  # of an image
SHOWN = 12  # kinds of operations


def training_speed(
    configs: list[str],
    overrides: list[str] = (),
    batch: int = 4,
    image_size: tuple[int, int] = (256, 320),
    repeats: int = 15,
    profile: bool = True,
    memory: bool = False,
) -> dict:
    """Time of a training step of detectors that take turns, what takes it, and its memory.

    A step is what `fit` calls: batches of bytes, normalised in it, eight random boxes an image;
    forward pass, losses, gradients, update. Weights are as initialised.

    Args:
        configs: names or files; the first row is compared with.
        overrides: `key=value` strings, for each of them.
        batch: images in a step.
        image_size: of the padded images, multiples of `data.size_divisor`.
        repeats: steps of each that are timed, after two.
        profile: whether one more step of each is traced by TensorFlow's profiler.
        memory: whether a process of its own does nothing but two steps of each.

    Returns:
        A dict that `json` can write: `environment`, `batch`, `image_size`, `repeats` and `rows`, a
        list of `name`, `ms` of a step (median), `images_per_s`, `ratio` (median over the rounds of
        the time divided by that of the first row), `peak_mb`, the most that the process of the two
        steps held, TensorFlow and the weights included, and `operations`: from the kind of an
        operation to its milliseconds, summed over threads, the longest first. What was not asked
        for, and a peak whose process failed, is None.

    Example:
        >>> tiny = ["detector.backbone.width=4", "detector.head.filters=8"]
        >>> report = training_speed(["demo_baseline"], tiny, 1, (64, 64), repeats=1, profile=False)
        >>> report["rows"][0]["ratio"]
        1.0
    """
    report = {"environment": environment(), "batch": batch, "image_size": list(image_size)}
    report |= {"repeats": repeats, "rows": []}
    peaks = {}
    for config in track(configs if memory else [], description="memory"):
        arguments = (str(config), list(overrides), batch, list(image_size))
        # Freed blocks go back to the system, as far as the C library can.
        peaks[config] = in_new_process(
            __name__, "_peak_mb", *arguments, MALLOC_MMAP_THRESHOLD_="65536"
        )
    steps = {config: _step(config, overrides, batch, image_size) for config in configs}
    seconds = interleaved(steps, repeats)
    for config, step in track(list(steps.items()), description="profiling"):
        ms = float(np.median(seconds[config]) * 1e3)
        report["rows"].append(
            {
                "name": Path(config).stem,
                "ms": ms,
                "images_per_s": 1e3 * batch / ms,
                "ratio": float(np.median(seconds[config] / seconds[configs[0]])),
                "peak_mb": peaks.get(config),
                "operations": operation_times(step) if profile else None,
            }
        )
    return report


def _peak_mb(*arguments):
    step = _step(*arguments)
    for _ in range(2):
        step()
    return status_kb("VmHWM") / 1024


def _step(config, overrides, batch, image_size):
    """A function that makes one step by the function of Keras' `fit`."""
    config = load_config(config, overrides)
    settings = config.train.optimizer
    detector = build_detector(config.detector, NUM_CLASSES, config.data.size_divisor)
    detector.compile(
        make_optimizer(settings, 1e-4),
        clip_norm=settings.clip_norm,
        weight_decay=settings.weight_decay,
        jit_compile=config.train.jit_compile,
    )
    batches = iter(tf.data.Dataset.from_tensors(problem(batch, tuple(image_size))).repeat())
    detector.make_train_function()
    return lambda: tf.nest.map_structure(np.asarray, detector.train_function(batches))


def problem(batch: int, size: tuple[int, int]) -> dict[str, Any]:
    """A batch of noise, with objects of 16 pixels to half of the image, and masks of ellipses."""
    rng = np.random.default_rng(0)
    height, width = size
    boxes, packed = np.zeros((batch, NUM_BOXES, 4), np.float32), []
    for image in range(batch):
        masks = []
        for number in range(NUM_BOXES):
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
        "pixel_mean": np.tile(np.float32([IMAGENET_MEAN]), (batch, 1)),
        "pixel_std": np.tile(np.float32([IMAGENET_STD]), (batch, 1)),
        "image_sizes": np.tile(np.int32([size]), [batch, 1]),
        "boxes": boxes,
        "labels": rng.integers(0, NUM_CLASSES, (batch, NUM_BOXES)).astype(np.int32),
        "bitmaps": np.stack([np.pad(b, (0, length - len(b))) for b, _, _ in packed]),
        "frames": np.stack([frames for _, frames, _ in packed]),
        "offsets": np.stack([offsets for _, _, offsets in packed]),
    }


def operation_times(run: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of each kind of operation in a call, by TensorFlow's profiler.

    Args:
        run: without arguments; it should have run before.

    Returns:
        dict from `"Conv2D"` and the like to milliseconds, summed over the threads that operations
        run on (not over those that they use in turn), the longest first.

    Example:
        >>> square = tf.function(lambda x: tf.matmul(x, x))
        >>> square(tf.ones([99, 99])).shape
        TensorShape([99, 99])
        >>> "MatMul" in operation_times(lambda: square(tf.ones([99, 99])))
        True
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    times = collections.Counter()
    for plane in space.planes:
        if plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            for event in line.events:
                # Operations are named NODE:KIND.
                node, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                if node and kind.isidentifier() and ":" not in node:
                    times[kind] += event.duration_ps / 1e9
    return dict(times.most_common())


def training_markdown(report: dict) -> str:
    """The report of `training_speed` as tables: times, and shares of kinds of operations."""
    height, width = report["image_size"]
    rows = report["rows"]
    lines = [
        environment_line(report["environment"]),
        f"Batches of {report['batch']} images of {height} x {width}, medians of "
        f"{report['repeats']} steps of each in turn.",
        "",
        "| what | ms of a step | images/s | ratio | peak MB |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row['name']} | {row['ms']:.0f} | {row['images_per_s']:.1f} | {row['ratio']:.2f} | "
            + ("-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}")
            + " |"
            for row in rows
        ),
    ]
    if rows[0]["operations"] is None:
        return "\n".join(lines)
    total = collections.Counter()
    for row in rows:
        total.update(row["operations"])
    lines += [
        "",
        f"| operation, ms of a step | {' | '.join(row['name'] for row in rows)} |",
        "|" + " --- |" * (len(rows) + 1),
    ]
    kinds = [kind for kind, _ in total.most_common(SHOWN)]
    for kind in kinds:
        cells = [f"{row['operations'].get(kind, 0.0):.0f}" for row in rows]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    rest = [sum(ms for kind, ms in r["operations"].items() if kind not in kinds) for r in rows]
    lines.append(f"| all others | {' | '.join(f'{ms:.0f}' for ms in rest)} |")
    return "\n".join(lines)
