"""A run directory: what one training leaves behind, and how to load its detector again.

config.yaml         the resolved config
categories.json     [{"id": 18, "name": "dog"}, ...] in the order of the detector's classes
environment.json    command, versions, git revision, seed, devices
checkpoints/        step_<N>.npz (everything needed to continue), best.npz (weights)
history.json        metrics per evaluated epoch
tensorboard/        event files
"""

import fcntl
import json
import logging
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import tensorflow as tf

from sepc_tf.checkpoints.variables import assign_variables, named_variables
from sepc_tf.config import ConfigError, config_to_yaml, differences, load_config
from sepc_tf.errors import CheckpointError
from sepc_tf.files import write_json, write_text
from sepc_tf.training.checkpoints import (
    read_checkpoint,
    section,
    step_files,
)
from sepc_tf.zoo import build_detector

log = logging.getLogger(__name__)

# A run may continue with other values of these: none changes what an earlier step did.
FREE_TO_CHANGE = (
    "train.epochs",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
)


@dataclass
class Run:
    """A finished or running training, ready to predict.

    Attributes:
        config: the resolved `sepc_tf.config.Config`.
        detector: the detector with the checkpoint's weights.
        categories: `[{"id": int, "name": str}, ...]`, one per class of the detector.
        checkpoint: the file the weights come from.
        step: the training step of the weights.
    """

    config: object
    detector: object
    categories: list
    checkpoint: Path
    step: int


def prepare_run_dir(run_dir, config):
    """Creates a run directory, or checks that an existing one belongs to the same config.

    Raises:
        ConfigError: the directory holds a run of another config; every difference is listed.
    """
    run_dir = Path(run_dir)
    saved = run_dir / "config.yaml"
    if not saved.is_file() and run_dir.is_dir() and any(run_dir.iterdir()):
        raise ConfigError(
            f"run directory {run_dir} is not empty and holds no config.yaml; give another --run-dir"
        )
    # Without checkpoints/ an earlier start failed before it trained: nothing to protect.
    if saved.is_file() and (run_dir / "checkpoints").is_dir():
        changed = [
            line
            for line in differences(load_config(saved), config)
            if not _may_change(line.split(":")[0], config)
        ]
        if changed:
            raise ConfigError(
                f"run directory {run_dir} holds a run of another config; give another --run-dir, "
                "or remove it to start anew. Different (there -> now):\n  " + "\n  ".join(changed)
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(saved, config_to_yaml(config))
    return run_dir


def _may_change(key, config):
    if key == "train.epochs":
        return config.train.schedule.type != "cosine"  # a cosine ends with the last epoch
    return key in FREE_TO_CHANGE


def lock_run_dir(run_dir):
    """Keeps a second process out of a run directory; hold the returned file open while training.

    Raises:
        ConfigError: another process trains there.
    """
    file = open(Path(run_dir) / ".lock", "w")  # noqa: SIM115 - open means locked
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(f"another process is training in run directory {run_dir}") from error
    return file


def write_environment(run_dir, config, strategy):
    """Writes `environment.json`: what someone needs to repeat the run."""
    packages = ("tensorflow", "keras", "keras-cv", "tensorflow-addons", "numpy", "pycocotools")
    write_json(
        Path(run_dir) / "environment.json",
        {
            "command": sys.argv,
            "seed": config.train.seed,
            "git_revision": _git_revision(),
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in packages},
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "replicas": strategy.num_replicas_in_sync,
            "devices": [device.name for device in tf.config.list_logical_devices()],
        },
    )


def load_run(run_dir, checkpoint="best", overrides=()):
    """Builds a run's detector and loads its weights.

    Args:
        run_dir: the run directory.
        checkpoint: "best" (highest AP), "last" (newest step), or the path of a checkpoint.
        overrides: `"dotted.key=value"` strings, as for `load_config`.

    Returns:
        A `Run`.

    Raises:
        ConfigError: the folder is no run directory.
        CheckpointError: the checkpoint is missing, damaged, or of another detector.

    Example:
        >>> run = load_run("runs/demo")
        >>> detections = Predictor(run)("image.jpg")
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(
            f"{run_dir} is no run directory (it has no config.yaml); train one with "
            "sepc-tf train --config FILE --run-dir DIR"
        )
    config = load_config(run_dir / "config.yaml", overrides)
    categories = json.loads((run_dir / "categories.json").read_text(encoding="utf-8"))
    path = _checkpoint_path(run_dir, checkpoint)
    arrays, meta = read_checkpoint(path)
    config.detector.backbone.weights = None  # the checkpoint holds them
    detector = build_detector(config.detector, num_classes=len(categories))
    averages = section(arrays, "ema")
    assign_variables(named_variables(detector), averages or section(arrays, "model"), path)
    return Run(config, detector, categories, path, meta["step"])


def _checkpoint_path(run_dir, checkpoint):
    checkpoints = run_dir / "checkpoints"
    if checkpoint == "best":
        if (checkpoints / "best.npz").is_file():
            return checkpoints / "best.npz"
        raise CheckpointError(
            f"{checkpoints} has no best.npz: no epoch of this run has been evaluated yet; "
            "--checkpoint last takes the newest step"
        )
    if checkpoint == "last":
        files = step_files(checkpoints)
        if files:
            return files[0][1]
        raise CheckpointError(f"{checkpoints} has no step_<N>.npz: nothing has been saved yet")
    return Path(checkpoint)


def _git_revision():
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
