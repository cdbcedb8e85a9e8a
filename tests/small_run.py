"""Small detectors of every kind, with weights that tell images and boxes apart."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest

from sepc_tf.checkpoints import named_variables
from sepc_tf.config import BackboneConfig, Config, DataConfig, DetectorConfig, HeadConfig
from sepc_tf.runs import Run
from sepc_tf.zoo import build_detector

SIZE = (64, 96)  # of the network's input
STATISTICS = {
    "gamma": (0.7, 1.4),
    "beta": (-0.3, 0.3),
    "moving_mean": (-0.3, 0.3),
    "moving_variance": (0.5, 2.0),
}
# Format of an export -> the package that runs it.
PACKAGES = {"litert": "ai_edge_litert", "onnx": "onnxruntime", "openvino": "openvino"}
CATEGORIES = [{"id": 10 * i, "name": name} for i, name in enumerate("abc")]


def need(format):
    """Skips the test where nothing runs the format."""
    if format in PACKAGES and importlib.util.find_spec(PACKAGES[format]) is None:
        pytest.skip(f"{PACKAGES[format]} is not installed (the extra {format})")


def small_config(detector_type="retinanet", variant="baseline", backbone=None, **options):
    """Of inputs of `SIZE`."""
    backbone = {"depth": 18, "width": 4, "frozen_stages": 0, "norm": "sync", **(backbone or {})}
    detector = DetectorConfig(
        type=detector_type,
        backbone=BackboneConfig(**backbone),
        head=HeadConfig(variant=variant, filters=8, num_convs=1),
        score_threshold=0.0,
        **options,
    )
    data = DataConfig(test_short_side=64, long_side=96, mean=[100.0] * 3, std=[50.0] * 3)
    return Config(detector=detector, data=data)


def small_run(detector_type, variant, convention="modern", **options):
    """A run of random weights, statistics of norms included; scores spread from 0 to 1."""
    keras.utils.set_random_seed(0)
    config = small_config(detector_type, variant, convention=convention, **options)
    detector = build_detector(config.detector, num_classes=len(CATEGORIES))
    rng = np.random.default_rng(0)
    for name, variable in named_variables(detector).items():
        *_, layer, kind = name.split("/")
        if kind in STATISTICS:
            variable.assign(rng.uniform(*STATISTICS[kind], variable.shape))
        elif kind.endswith("kernel"):  # that keeps the size of what goes through it
            gain = 3.0 if layer in ("classification", "class_out") else 1.0
            scale = gain / np.sqrt(np.prod(variable.shape[:-1]))
            variable.assign(rng.normal(0, scale, variable.shape))
    return Run(config, detector, CATEGORIES, Path("none"), 0)


def image(seed=0, size=(50, 75)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
