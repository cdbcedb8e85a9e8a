"""Measures how many images a second become training batches."""

from __future__ import annotations

import time

import numpy as np
import tensorflow as tf

from sepc_tf.benchmark.measure import environment, environment_line
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.pipeline import BatchPipeline
from sepc_tf.progress import track

# Short and long side as on COCO, and a small image.
SIZES = ((800, 1333), (256, 427))
BATCH_SIZE = 8


def input_speed(
    annotations: str,
    images: str,
    num_images: int = 256,
    num_parallel: int = tf.data.AUTOTUNE,
    rounds: int = 5,
) -> dict:
    """Images a second of the training pipeline, beside those of a bare `tf.io.decode_jpeg`.

    In turn in this process: the files of the data set, read and decoded by
    `tf.data.Dataset.map(tf.io.decode_jpeg)` and nothing else; and `BatchPipeline` with random
    mirroring, for each of `SIZES`. Every round goes through `num_images` images.

    Args:
        annotations, images: a data set in COCO format, of JPEG files.
        num_images: images in a round.
        num_parallel: images prepared at the same time; as many as pay by default.
        rounds: of each.

    Returns:
        A dict that `json` can write: `environment` and `rows`, a list of `what`, `images_per_s`
        (median over rounds) and `share` (median over rounds of the ratio to the bare decoding).

    Example:
        >>> report = input_speed("demo_data/annotations/instances_val.json", "demo_data/val",
        ...                      num_images=16, rounds=1)
        >>> [row["what"] for row in report["rows"]]
        ['tf.io.decode_jpeg alone', 'batches, 800 x 1333', 'batches, 256 x 427']
    """
    dataset = CocoDataset.load(annotations, images)
    names = [f"{images}/{record.file_name}" for record in dataset.images]
    parts = {"tf.io.decode_jpeg alone": _decoding(names, num_images, num_parallel)}
    for short_side, long_side in SIZES:
        pipeline = BatchPipeline(
            dataset,
            batch_size=BATCH_SIZE,
            training=True,
            short_side=short_side,
            long_side=long_side,
            flip_probability=0.5,
            num_parallel=num_parallel,
        )
        batches = pipeline.training_batches().take(-(-num_images // BATCH_SIZE))
        parts[f"batches, {short_side} x {long_side}"] = batches
    report = {"environment": environment(), "rows": []}
    for part in parts.values():
        _speed(part)  # files into memory, threads started
    speeds = {what: [] for what in parts}
    for _ in track(list(range(rounds)), description="rounds"):
        for what, part in parts.items():
            speeds[what].append(_speed(part))
    bare = np.array(next(iter(speeds.values())))
    for what, values in speeds.items():
        report["rows"].append(
            {
                "what": what,
                "images_per_s": float(np.median(values)),
                "share": float(np.median(np.array(values) / bare)),
            }
        )
    return report


def input_markdown(report: dict) -> str:
    """The report of `input_speed` as a table."""
    lines = ["| what | images/s | of the bare decoding |", "| --- | --- | --- |"]
    for row in report["rows"]:
        lines.append(f"| {row['what']} | {row['images_per_s']:.0f} | {row['share']:.2f} |")
    return "\n".join([environment_line(report["environment"]), "", *lines])


def _decoding(names: list[str], num_images: int, num_parallel: int) -> tf.data.Dataset:
    def decode(name):
        return tf.io.decode_jpeg(tf.io.read_file(name), channels=3)

    files = tf.data.Dataset.from_tensor_slices(names).repeat().take(num_images)
    return files.map(decode, num_parallel_calls=num_parallel)


def _speed(batches):
    """Images a second, of images `[H, W, 3]` or of batches."""
    count = 0
    started = time.perf_counter()
    for element in batches:
        count += len(element["images"]) if isinstance(element, dict) else 1
    return count / (time.perf_counter() - started)
