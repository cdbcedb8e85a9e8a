"""From uint8 images of any size to boxes in their own pixels, in one function of the graph.

`predict` and the exported SavedModel run this function; evaluation has the same steps in its data
pipeline, where images of one batch may differ in size.
"""

from __future__ import annotations

import tensorflow as tf

from sepc_tf.data.config import DataConfig
from sepc_tf.data.preprocess import pad_to_multiple, preprocess_image
from sepc_tf.detectors import Detector


def detect_images(detector: Detector, data: DataConfig, images: tf.Tensor) -> dict[str, tf.Tensor]:
    """Detects objects in a batch of equally sized images.

    Resizes as the evaluation does (shorter side to `data.test_short_side` unless the longer one
    would pass `data.long_side`), normalises, pads to a multiple of `data.size_divisor`, runs the
    detector, and maps the boxes back.

    Args:
        detector: a `sepc_tf.detectors.Detector`.
        data: a `sepc_tf.config.DataConfig`.
        images: `[batch, height, width, 3]` uint8, RGB.

    Returns:
        dict of `boxes` `[batch, D, 4]` float32 xyxy in pixels of `images`, `scores` `[batch, D]`
        float32, `classes` `[batch, D]` int32 (-1 past the end) and `num_detections` `[batch]`
        int32; D is the detector's `max_detections`.
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    resized = preprocess_image(
        images,
        short_side=data.test_short_side,
        long_side=data.long_side,
        mean=data.mean,
        std=data.std,
    )
    size = tf.shape(resized)[1:3]
    detections = detector.detect(
        pad_to_multiple(resized, data.size_divisor), tf.tile(size[None], [batch, 1])
    )
    limit = tf.cast(tf.stack([width, height] * 2), tf.float32)
    scale = limit / tf.cast(tf.stack([size[1], size[0]] * 2), tf.float32)
    boxes = tf.clip_by_value(detections["boxes"] * scale, 0.0, limit)
    present = detections["classes"] >= 0
    return {**detections, "boxes": tf.where(present[..., None], boxes, 0.0)}
