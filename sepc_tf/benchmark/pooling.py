"""Measures RoIAlign beside `tf.image.crop_and_resize`, which computes the same."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from sepc_tf.benchmark.measure import (
    environment,
    environment_line,
    in_new_process,
    interleaved,
    peak_mb,
)
from sepc_tf.ops.roi_align import roi_align as our_roi_align
from sepc_tf.ops.roi_align import roi_levels
from sepc_tf.progress import track

IMAGE_SIZE, STRIDES, CHANNELS = (800, 1344), (4, 8, 16, 32), 256
SIZE, SAMPLES = 7, 2
COUNTS = (512, 1000)  # boxes of a training step, of a prediction
# Name -> (whether it is ours, whether XLA compiles it); `crop_and_resize` has no XLA form.
FORMS = {
    "crop_and_resize": (False, False),
    "ours": (True, False),
    "ours, jit": (True, True),
}


def roi_align(repeats: int = 15) -> dict:
    """Time and peak memory of RoIAlign for one image of 800 x 1333 padded to 800 x 1344.

    7 x 7 bins with 2 x 2 samples from P2 to P5 with 256 channels. `crop_and_resize` gets each
    level with its boxes, makes 14 x 14 samples at the same positions, and `avg_pool2d` their means.

    Args:
        repeats: rounds of the timing; the forms run in turn.

    Returns:
        A dict that `json` can write: `environment` and `rows`, of `form`, `boxes`, `backward`,
        `ms` and `best_ms` (median and smallest), and `mb`, by which the peak exceeds what was held
        before, results included.
    """
    report = {"environment": environment(), "rows": []}
    for boxes, backward in track(
        list(itertools.product(COUNTS, (False, True))), description="timing"
    ):
        calls = {form: call(form, boxes, backward) for form in FORMS}
        for form, seconds in interleaved(calls, repeats).items():
            median, best = float(np.median(seconds) * 1e3), float(seconds.min() * 1e3)
            mb = in_new_process(
                __name__, "_peak", form, boxes, backward, MALLOC_MMAP_THRESHOLD_="65536"
            )
            row = {"form": form, "boxes": boxes, "backward": backward}
            report["rows"].append({**row, "ms": median, "best_ms": best, "mb": mb})
    return report


def _peak(form, boxes, backward):
    return peak_mb(call(form, boxes, backward))


def call(form: str, boxes: int, backward: bool) -> Callable[[], Any]:
    """A function without arguments that does one of `FORMS` for so many boxes."""
    ours, compiled = FORMS[form]
    pool = ours_pooled if ours else cropped
    pyramid, boxes, cotangent = problem(boxes)

    @functools.partial(tf.function, jit_compile=compiled, autograph=False)
    def run(pyramid, boxes, cotangent):
        if not backward:
            return pool(pyramid, boxes)
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            y = pool(pyramid, boxes)
        return tape.gradient(y, pyramid, cotangent)

    return functools.partial(run, pyramid, boxes, cotangent)


def problem(boxes: int, image_size: tuple = IMAGE_SIZE, channels: int = CHANNELS) -> tuple:
    """Random maps, boxes inside the image sorted by level, and a gradient by the output."""
    rng = np.random.default_rng(0)
    height, width = image_size
    pyramid = [
        tf.constant(rng.standard_normal((1, height // s, width // s, channels), np.float32))
        for s in STRIDES
    ]
    sides = np.exp(rng.uniform(np.log(16), np.log(600), (boxes, 2)))
    sides = np.minimum(sides, (width - 33, height - 33))
    # A stride of the coarsest level from the border: no sample is outside.
    corners = 16 + rng.uniform(0, 1, (boxes, 2)) * ((width - 33, height - 33) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    boxes = boxes[np.argsort(roi_levels(boxes, len(STRIDES)), kind="stable")]
    cotangent = rng.standard_normal((len(boxes), SIZE, SIZE, channels), np.float32)
    return pyramid, tf.constant(boxes), tf.constant(cotangent)


def ours_pooled(pyramid, boxes):
    """`[R, 7, 7, C]` by our operation."""
    return our_roi_align(pyramid, boxes[None], strides=STRIDES, size=SIZE, samples=SAMPLES)[0]


def cropped(pyramid, boxes):
    """`[R, 7, 7, C]` by `crop_and_resize`, level by level; the boxes are sorted by level."""
    levels, count = roi_levels(boxes, len(STRIDES)), SIZE * SAMPLES
    pooled = []
    for level, (x, stride) in enumerate(zip(pyramid, STRIDES)):
        own = tf.boolean_mask(boxes, levels == level) / stride - 0.5
        # It samples from corner to corner, we at the centres of equal parts.
        margin = (own[:, 2:] - own[:, :2]) / (2 * count)
        limits = tf.cast(tf.shape(x)[1:3], tf.float32)[::-1] - 1.0
        corners = tf.concat([(own[:, :2] + margin) / limits, (own[:, 2:] - margin) / limits], 1)
        corners = tf.gather(corners, [1, 0, 3, 2], axis=1)
        images = tf.zeros(tf.shape(own)[:1], tf.int32)
        crops = tf.image.crop_and_resize(x, corners, images, [count, count])
        pooled.append(tf.nn.avg_pool2d(crops, SAMPLES, SAMPLES, "VALID"))
    return tf.concat(pooled, axis=0)


def roi_align_markdown(report: dict) -> str:
    """The report as a table."""
    lines = [
        environment_line(report["environment"]),
        "",
        "| boxes | what | form | ms | best ms | MB |",
        "|" + " --- |" * 6,
    ]
    for row in report["rows"]:
        what = "forward + backward" if row["backward"] else "forward"
        mb = "not measured" if row["mb"] is None else f"{row['mb']:.0f}"
        lines.append(
            f"| {row['boxes']} | {what} | {row['form']} | {row['ms']:.0f} | {row['best_ms']:.0f} "
            f"| {mb} |"
        )
    return "\n".join(lines)
