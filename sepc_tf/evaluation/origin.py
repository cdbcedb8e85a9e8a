"""What a file of detections came from, and whether that is still what one would get now."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.config import DataConfig
from sepc_tf.data.fingerprint import fingerprint
from sepc_tf.detectors.config import DetectorConfig
from sepc_tf.files import read_json

RESIZING = ("test_short_side", "long_side", "channel_order", "mean", "std", "size_divisor")


def detections_origin(
    detector: DetectorConfig, data: DataConfig, checkpoint: str | Path, dataset: CocoDataset
) -> dict:
    """Everything that detections depend on: weights, detector settings, resizing, images.

    Args:
        detector, data: of the run's config, with the overrides of the evaluation.
        checkpoint: the file of the weights.
        dataset: what was evaluated; the pixels of its images take no part.

    Returns:
        A dict that can be written as JSON, and is equal to itself when it is read back.

    Example:
        >>> best = "runs/demo/checkpoints/best.npz"
        >>> origin = detections_origin(config.detector, config.data, best, dataset)
        >>> origin["checkpoint"], origin["data"]["images"]
        ('best.npz', 4)
    """
    digest = hashlib.sha256()
    with open(checkpoint, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    origin = {
        "checkpoint": Path(checkpoint).name,
        "sha256": digest.hexdigest(),
        "detector": dataclasses.asdict(detector),
        "resizing": {name: getattr(data, name) for name in RESIZING},
        "data": fingerprint(dataset),
    }
    return json.loads(json.dumps(origin))


def up_to_date(directory: str | Path, origin: dict) -> bool:
    """Whether `detections.json` of a folder is what `origin` would give again.

    Example:
        >>> up_to_date("runs/demo/evaluation", {})
        False
    """
    directory = Path(directory)
    try:
        return (directory / "detections.json").is_file() and origin == read_json(
            directory / "origin.json"
        )
    except (OSError, ValueError):
        return False
