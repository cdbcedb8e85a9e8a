"""SEPC-TF: object detectors with pyramid convolution for TensorFlow 2 and Keras.

    import sepc_tf

    sepc_tf.train(sepc_tf.load_config("demo_sepc_lite"), "runs/demo")
    run = sepc_tf.load_run("runs/demo")
    detections = sepc_tf.Predictor(run)("image.jpg")

What stands in `__all__` is the public interface; it is imported when it is first used, TensorFlow
with it.
"""

from __future__ import annotations

import importlib
import sys
import types
import typing

__version__ = "0.2.0"

# Public name -> the module that defines it. For type checkers the same names stand below.
_DEFINED_IN = {
    # One function for each thing to do.
    "load_config": "sepc_tf.config",
    "train": "sepc_tf.train",
    "load_run": "sepc_tf.runs",
    "packaged_run": "sepc_tf.runs",
    "evaluate_run": "sepc_tf.evaluation.run",
    "Predictor": "sepc_tf.predict",
    "predict_files": "sepc_tf.predict",
    "export": "sepc_tf.export",
    "draw_detections": "sepc_tf.visualization",
    "UserError": "sepc_tf.errors",
    "keep_freed_memory": "sepc_tf.allocator",
    # Detectors and their parts.
    "build_detector": "sepc_tf.zoo",
    "Detector": "sepc_tf.detectors",
    "RetinaNet": "sepc_tf.detectors",
    "FreeAnchor": "sepc_tf.detectors",
    "FSAF": "sepc_tf.detectors",
    "FCOS": "sepc_tf.detectors",
    "RepPoints": "sepc_tf.detectors",
    "ResNet": "sepc_tf.backbones",
    "FPN": "sepc_tf.necks",
    "PAFPN": "sepc_tf.necks",
    "NASFPN": "sepc_tf.necks",
    "BFP": "sepc_tf.necks",
    "HRFPN": "sepc_tf.necks",
    "SEPC": "sepc_tf.necks",
    "ConvTowers": "sepc_tf.necks",
    # Layers and operators.
    "PConv": "sepc_tf.layers",
    "ScaleEqualizingConv": "sepc_tf.layers",
    "DeformConv2D": "sepc_tf.layers",
    "IntegratedBatchNormalization": "sepc_tf.layers",
    "IndependentBatchNormalization": "sepc_tf.layers",
    "SingleBatchNormalization": "sepc_tf.layers",
    "SymmetricConv2D": "sepc_tf.layers",
    "GroupNormalization": "sepc_tf.layers",
    "deform_conv2d": "sepc_tf.ops",
    # Data.
    "CocoDataset": "sepc_tf.data.coco",
    "BatchPipeline": "sepc_tf.data.pipeline",
    "load_split": "sepc_tf.data.sources",
    "training_pipeline": "sepc_tf.data.sources",
    "evaluation_pipeline": "sepc_tf.data.sources",
    "check_dataset": "sepc_tf.data.check",
    "make_demo_dataset": "sepc_tf.data.demo",
}

__all__ = ["__version__", *_DEFINED_IN]

if typing.TYPE_CHECKING:
    from sepc_tf.allocator import keep_freed_memory as keep_freed_memory
    from sepc_tf.backbones import ResNet as ResNet
    from sepc_tf.config import load_config as load_config
    from sepc_tf.data.check import check_dataset as check_dataset
    from sepc_tf.data.coco import CocoDataset as CocoDataset
    from sepc_tf.data.demo import make_demo_dataset as make_demo_dataset
    from sepc_tf.data.pipeline import BatchPipeline as BatchPipeline
    from sepc_tf.data.sources import evaluation_pipeline as evaluation_pipeline
    from sepc_tf.data.sources import load_split as load_split
    from sepc_tf.data.sources import training_pipeline as training_pipeline
    from sepc_tf.detectors import FCOS as FCOS
    from sepc_tf.detectors import FSAF as FSAF
    from sepc_tf.detectors import Detector as Detector
    from sepc_tf.detectors import FreeAnchor as FreeAnchor
    from sepc_tf.detectors import RepPoints as RepPoints
    from sepc_tf.detectors import RetinaNet as RetinaNet
    from sepc_tf.errors import UserError as UserError
    from sepc_tf.evaluation.run import evaluate_run as evaluate_run
    from sepc_tf.export import export as export
    from sepc_tf.layers import DeformConv2D as DeformConv2D
    from sepc_tf.layers import GroupNormalization as GroupNormalization
    from sepc_tf.layers import IndependentBatchNormalization as IndependentBatchNormalization
    from sepc_tf.layers import IntegratedBatchNormalization as IntegratedBatchNormalization
    from sepc_tf.layers import PConv as PConv
    from sepc_tf.layers import ScaleEqualizingConv as ScaleEqualizingConv
    from sepc_tf.layers import SingleBatchNormalization as SingleBatchNormalization
    from sepc_tf.layers import SymmetricConv2D as SymmetricConv2D
    from sepc_tf.necks import BFP as BFP
    from sepc_tf.necks import FPN as FPN
    from sepc_tf.necks import HRFPN as HRFPN
    from sepc_tf.necks import NASFPN as NASFPN
    from sepc_tf.necks import PAFPN as PAFPN
    from sepc_tf.necks import SEPC as SEPC
    from sepc_tf.necks import ConvTowers as ConvTowers
    from sepc_tf.ops import deform_conv2d as deform_conv2d
    from sepc_tf.predict import Predictor as Predictor
    from sepc_tf.predict import predict_files as predict_files
    from sepc_tf.runs import load_run as load_run
    from sepc_tf.runs import packaged_run as packaged_run
    from sepc_tf.train import train as train
    from sepc_tf.visualization import draw_detections as draw_detections
    from sepc_tf.zoo import build_detector as build_detector


class _Package(types.ModuleType):
    """This package: `sepc_tf.train` is the function, also once the module `sepc_tf.train` exists.

    Python binds a submodule to its package's attribute of that name when it is first imported,
    whoever imports it; here a public name wins. `from sepc_tf.train import ...` works as ever.
    """

    def __getattr__(self, name):
        if name not in _DEFINED_IN:
            raise AttributeError(f"module 'sepc_tf' has no attribute {name!r}")
        value = getattr(importlib.import_module(_DEFINED_IN[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name, value):
        if not (name in _DEFINED_IN and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self):
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
