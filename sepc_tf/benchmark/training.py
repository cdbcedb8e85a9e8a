"""Measures the training step: its time, and what takes it."""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from sepc_tf.benchmark.measure import environment, environment_line, interleaved
from sepc_tf.config import Config
from sepc_tf.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from sepc_tf.progress import track
from sepc_tf.training.optimizers import make_optimizer
from sepc_tf.zoo import build_detector

NUM_CLASSES = 80
NUM_BOXES = 8  # of an image
SHOWN = 12  # kinds of operations


def training_speed(
    configs: dict[str, Config],
    batch: int = 4,
    image_size: tuple[int, int] = (256, 320),
    repeats: int = 15,
    profile: bool = True,
) -> dict:
    """Time of a training step of detectors that take turns.

    A step is what `fit` calls: batches of bytes, normalised in it, eight random boxes an image;
    forward pass, losses, gradients, update. Weights are as initialised.

    Args:
        configs: by name; the first row is compared with.
        batch: images in a step.
        image_size: of the padded images, multiples of 32.
        repeats: steps of each that are timed, after two.
        profile: whether one more step of each is traced by TensorFlow's profiler.

    Returns:
        A dict that `json` can write: `environment`, `batch`, `image_size`, `repeats` and `rows`, a
        list of `name`, `ms` of a step (median), `images_per_s`, `ratio` (median over the rounds of
        the time divided by that of the first row) and `operations`, or None: from the kind of an
        operation to its milliseconds, summed over threads, the longest first.

    Example:
        >>> tiny = ["detector.backbone.width=4", "detector.head.filters=8"]
        >>> configs = {"demo_baseline": load_config("demo_baseline", tiny)}
        >>> training_speed(configs, 1, (64, 64), repeats=1, profile=False)["rows"][0]["ratio"]
        1.0
    """
    report = {"environment": environment(), "batch": batch, "image_size": list(image_size)}
    report |= {"repeats": repeats, "rows": []}
    images, boxes, labels = _problem(batch, image_size)
    steps = {name: _step(c, images, boxes, labels) for name, c in configs.items()}
    seconds = interleaved(steps, repeats)
    first = next(iter(steps))
    for name, step in track(list(steps.items()), description="profiling"):
        ms = float(np.median(seconds[name]) * 1e3)
        report["rows"].append(
            {
                "name": name,
                "ms": ms,
                "images_per_s": 1e3 * batch / ms,
                "ratio": float(np.median(seconds[name] / seconds[first])),
                "operations": operation_times(step) if profile else None,
            }
        )
    return report


def _problem(batch, image_size):
    rng = np.random.default_rng(0)
    height, width = image_size
    images = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
    corner = rng.uniform(0, 0.5, (batch, NUM_BOXES, 2)) * (width, height)
    sides = rng.uniform(0.1, 0.5, (batch, NUM_BOXES, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)
    return images, boxes, rng.integers(0, NUM_CLASSES, (batch, NUM_BOXES), np.int32)


def _step(config, images, boxes, labels):
    settings = config.train.optimizer
    detector = build_detector(config.detector, NUM_CLASSES, config.data.size_divisor)
    detector.compile(
        make_optimizer(settings, 1e-4),
        clip_norm=settings.clip_norm,
        weight_decay=settings.weight_decay,
        jit_compile=config.train.jit_compile,
    )
    count = len(images)
    batch = {
        "images": images,
        "image_sizes": np.tile(np.int32([images.shape[1:3]]), (count, 1)),
        "boxes": boxes,
        "labels": labels,
        "pixel_mean": np.tile(np.float32([IMAGENET_MEAN]), (count, 1)),
        "pixel_std": np.tile(np.float32([IMAGENET_STD]), (count, 1)),
    }
    return _repeated(detector, batch)


def _repeated(model, batch):
    """A function that makes one step by the function of Keras' `fit`."""
    batches = iter(tf.data.Dataset.from_tensors(batch).cache().repeat())
    model.make_train_function()
    return lambda: tf.nest.map_structure(np.asarray, model.train_function(batches))


def operation_times(run: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of each kind of operation in a call, by TensorFlow's profiler.

    Args:
        run: without arguments; it should have run before.

    Returns:
        dict from `"Conv2D"` and the like to milliseconds, summed over the threads that operations
        run on (not over those that they use in turn), the longest first.

    Example:
        >>> "MatMul" in operation_times(lambda: tf.matmul(tf.ones([9, 9]), tf.ones([9, 9])))
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
        "| what | ms of a step | images/s | ratio |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['name']} | {row['ms']:.0f} | {row['images_per_s']:.1f} | {row['ratio']:.2f} |"
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
