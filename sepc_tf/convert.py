"""From a checkpoint of mmdetection 1.x to a run directory, and back."""

import logging
from pathlib import Path

import numpy as np

from sepc_tf.checkpoints import (
    CheckpointError,
    export_state_dict,
    import_state_dict,
    named_variables,
    read_state_dict,
)
from sepc_tf.checkpoints.variables import read_variables
from sepc_tf.config import ConfigError
from sepc_tf.data.check import read_annotations
from sepc_tf.files import check_writable, replacing, write_json, write_text
from sepc_tf.runs import load_run, prepare_run_dir
from sepc_tf.training.checkpoints import write_checkpoint
from sepc_tf.zoo import build_detector

log = logging.getLogger(__name__)

# The last convolution of the class scores, one key for each kind of head.
CLASSIFIERS = ("bbox_head.retina_cls", "bbox_head.fcos_cls", "bbox_head.reppoints_cls_out")

_COCO_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, "
    "sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, "
    "bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, "
    "carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, "
    "tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
# COCO's ids run from 1 to 90; these were never used.
_COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def coco_categories():
    """COCO's 80 categories, `[{"id": 1, "name": "person"}, ...]`, in the order of their ids.

    Example:
        >>> coco_categories()[-1]
        {'id': 90, 'name': 'toothbrush'}
    """
    ids = [number for number in range(1, 91) if number not in _COCO_UNUSED]
    names = _COCO_NAMES.split(", ")
    return [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]


def annotation_categories(path):
    """The categories of a COCO annotation file, in the order of their ids, which is that of labels.

    Raises:
        DatasetError: the file cannot be used.
    """
    categories = sorted(read_annotations(path)["categories"], key=lambda c: c["id"])
    return [{"id": c["id"], "name": c["name"]} for c in categories]


def convert_to_run(config, checkpoint, out_dir, categories=None, reset_head=False):
    """Makes a run directory of a checkpoint of mmdetection 1.x.

    The run evaluates, predicts and exports like a trained one. Every key of the checkpoint must
    have its place in the detector and the other way round; otherwise nothing is written.

    Args:
        config: a `sepc_tf.config.Config`, of the detector that was trained.
        checkpoint: a file that `read_state_dict` reads.
        out_dir: the run directory; it must not exist, or be empty.
        categories: `[{"id": int, "name": str}, ...]`, one per class, in the order of the classes;
            COCO's by default.
        reset_head: leave out the checkpoint's classifier and write a new, untrained one, to
            fine-tune on other classes.

    Returns:
        `ImportReport`: what went where.

    Raises:
        CheckpointError: the file is unreadable, holds more than arrays, or does not fit; lists
            every mismatch.
        ConfigError: `out_dir` is not empty.
        FileNotFoundError: there is no such checkpoint.

    Example, with the authors' file:
        >>> config = load_config("retinanet_r50_sepc_1x", ["detector.convention=mmdet1"])
        >>> out_dir = "runs/retinanet_sepc"
        >>> print(convert_to_run(config, "retinanet_sepc.pth", out_dir))  # doctest: +SKIP
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ConfigError(f"--out {out_dir} exists and is not an empty folder; give another one")
    categories = coco_categories() if categories is None else categories
    state_dict = read_state_dict(checkpoint)
    if "conv1.weight" in state_dict:
        raise CheckpointError(
            f"checkpoint {checkpoint}: holds a backbone alone, as torchvision's files do; start a "
            "training from it with detector.backbone.weights=FILE"
        )
    config.detector.backbone.weights = None  # the checkpoint holds them
    detector = build_detector(config.detector, num_classes=len(categories))
    ignore = [f"{key}.*" for key in CLASSIFIERS] if reset_head else ()
    try:
        report = import_state_dict(detector, state_dict, ignore=ignore)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}{_hint(error, len(categories))}") from error
    prepare_run_dir(out_dir, config)
    write_json(out_dir / "categories.json", categories)
    variables = read_variables(named_variables(detector))
    write_checkpoint(
        out_dir / "checkpoints/best.npz",
        {f"model/{path}": value for path, value in variables.items()},
        {"step": 0, "source": Path(checkpoint).name},
    )
    write_text(out_dir / "conversion.txt", f"{checkpoint}\n{report}\n")
    if config.detector.convention == "modern":
        log.warning(
            "note: detector.convention is modern; the authors' models were trained, and reach "
            "their AP, with detector.convention=mmdet1 (docs/conventions.md)"
        )
    return report


def _hint(error, num_classes):
    wrong = [line for line in str(error).splitlines() if "wrong shape:" in line]
    if any(f"{key}." in line for line in wrong for key in CLASSIFIERS):
        return (
            "\n--reset-head leaves the checkpoint's classifier out and starts a new one for "
            f"{num_classes} classes; --annotations FILE names the classes of the checkpoint"
        )
    return ""


def convert_to_mmdet1(run_dir, out, checkpoint="best"):
    """Writes the weights of a run as a state dict of mmdetection 1.x.

    Args:
        run_dir: a run directory.
        out: the file to write, `.npz` or (with PyTorch) `.pth`.
        checkpoint: "best", "last" or a path, as for `load_run`.

    Returns:
        The state dict, key -> numpy array.

    Raises:
        CheckpointError: the run's weights cannot be read, have no counterpart in mmdetection, or
            PyTorch is missing.
        ConfigError: `run_dir` is no run directory, or another file ending.
        FileExistsError: there is such a file.
        OutputError: it cannot be written, found before the run is loaded, or the disk is full.

    Example:
        >>> state_dict = convert_to_mmdet1("runs/demo", "demo.npz")
        >>> state_dict["bbox_head.retina_cls.weight"].shape  # [out, in, 3, 3]
        (90, 16, 3, 3)
    """
    out = Path(out)
    if out.suffix not in (".npz", ".pth"):
        raise ConfigError(f"--out {out}: expected a file that ends in .npz or .pth")
    if out.exists():
        raise FileExistsError(f"--out {out} exists already")
    check_writable(out.parent)
    run = load_run(run_dir, checkpoint)
    state_dict = export_state_dict(run.detector)
    size = sum(array.nbytes for array in state_dict.values())
    if out.suffix == ".npz":
        with replacing(out, size) as file:
            np.savez(file, **state_dict)
        return state_dict
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"writing {out} needs PyTorch: pip install 'sepc-tf[convert]' (or write .npz)"
        ) from error
    content = {
        "meta": {"CLASSES": tuple(category["name"] for category in run.categories)},
        "state_dict": {key: torch.from_numpy(value) for key, value in state_dict.items()},
    }
    with replacing(out, size) as file:
        torch.save(content, file)
    return state_dict
