"""From uint8 images of any size to boxes in their own pixels, in one function of the graph.

`predict` and the exported SavedModel run this function; evaluation has the same steps in its data
pipeline, where images of one batch may differ in size.
"""

from __future__ import annotations

import tensorflow as tf

from sepc_tf.data.config import DataConfig
from sepc_tf.data.preprocess import frame_sizes, pad_to_multiple, preprocess_image
from sepc_tf.detectors import Detector
from sepc_tf.ops.boxes import LAST_PIXEL


def detect_images(detector: Detector, data: DataConfig, images: tf.Tensor) -> dict[str, tf.Tensor]:
    """Detects objects in a batch of equally sized images.

    Resizes as the evaluation does (shorter side to `data.test_short_side` unless the longer one
    would pass `data.long_side`), normalises, pads to a multiple of `data.size_divisor`, and runs
    the detector. Boxes mean the same in every convention: x2 - x1 is the width, hence a detector
    of "mmdet1" has its last pixel added, and its boxes may end up to a pixel outside the image.

    Args:
        detector: a `sepc_tf.detectors.Detector`.
        data: a `sepc_tf.config.DataConfig`.
        images: `[batch, height, width, 3]` uint8, RGB.

    Returns:
        dict of `boxes` `[batch, D, 4]` float32 xyxy in pixels of `images`, `scores` `[batch, D]`
        float32, `classes` `[batch, D]` int32 (-1 past the end) and `num_detections` `[batch]`
        int32; D is the detector's `max_detections`.
    """
    shape = tf.shape(images)
    original_size = shape[1:3]
    resized = preprocess_image(
        images,
        short_side=data.test_short_side,
        long_side=data.long_side,
        mean=data.mean,
        std=data.std,
        channel_order=data.channel_order,
    )
    size = tf.shape(resized)[1:3]
    frame = frame_sizes(
        size, original_size, data.test_short_side, data.long_side, detector.convention
    )
    detections = detector.detect(
        pad_to_multiple(resized, data.size_divisor),
        *(tf.tile(x[None], [shape[0], 1]) for x in (size, frame)),
    )
    last_pixel = tf.constant([0.0, 0.0, 1.0, 1.0]) * LAST_PIXEL[detector.convention]
    present = detections["classes"] >= 0
    boxes = tf.where(present[..., None], detections["boxes"] + last_pixel, 0.0)
    return {**detections, "boxes": boxes}
