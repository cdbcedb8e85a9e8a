"""A run directory: what one training leaves behind, and how to load its detector again.

config.yaml         the resolved config
categories.json     [{"id": 18, "name": "dog"}, ...] in the order of the detector's classes
data.json           fingerprints of the training and validation data
environment.json    command, versions, git revision, seed, devices
checkpoints/        step_<N>.npz (everything needed to continue), best.npz (weights)
history.json        metrics per evaluated epoch
tensorboard/        event files
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO

import keras
import tensorflow as tf

from sepc_tf.checkpoints.variables import assign_variables, named_variables
from sepc_tf.config import Config, ConfigError, config_to_yaml, differences, load_config
from sepc_tf.data.categories import are_categories, category_differences
from sepc_tf.errors import CheckpointError, DatasetError
from sepc_tf.files import PARTIAL_FILES, read_json, write_json, write_text, writing
from sepc_tf.training.checkpoints import (
    read_checkpoint,
    section,
    step_files,
)
from sepc_tf.zoo import build_detector

log = logging.getLogger(__name__)

# A run may continue with other values of these: none changes what an earlier step did. The data
# may lie elsewhere (`check_run_data` makes sure that it is the same), and what the weights start
# from is only read before the first step.
FREE_TO_CHANGE = (
    "train.epochs",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "data.directory",
    "data.train.annotations",
    "data.train.images",
    "data.val.annotations",
    "data.val.images",
    "detector.backbone.weights",
    "detector.head.kernel_stddev",
    "evaluation.iou_thresholds",
)

# Finished runs that come with the package: name -> run directory.
PACKAGED_RUNS = {"demo": Path(__file__).parent / "demo_model"}

# What is cut off may still be valid YAML, whose missing settings would have their defaults.
_HEAD = "# The config of this run, whole where the last line says that it ends.\n"
_END = "# end\n"


@dataclass
class Run:
    """A finished or running training, ready to predict.

    Attributes:
        config: the resolved `sepc_tf.config.Config`.
        detector: the detector with the checkpoint's weights.
        categories: `[{"id": int, "name": str}, ...]`, one per class of the detector.
        checkpoint: the file the weights come from.
        step: the training step of the weights.
        strategy: what the detector was built for; evaluation runs on all its devices.
        batch_size: images at a time over all devices of `strategy`, on each of them as many as in
            training.
    """

    config: Config
    detector: keras.Model
    categories: list[dict]
    checkpoint: Path
    step: int
    strategy: tf.distribute.Strategy = field(default_factory=tf.distribute.get_strategy)
    batch_size: int = 1


def lock_run_dir(run_dir: str | Path) -> IO:
    """Keeps a second process out of a run directory; hold the returned file open while training.

    The directory is created where there is none. What a killed process left half written there is
    removed.

    Raises:
        ConfigError: another process trains there, or the directory is none of a run.
        OutputError: the directory cannot be written to.

    Example:
        >>> with lock_run_dir("runs/demo"):
        ...     run_dir = prepare_run_dir("runs/demo", config)
    """
    run_dir = Path(run_dir)
    _check_is_ours(run_dir)
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open(run_dir / ".lock", "w")  # noqa: SIM115 - open means locked
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(f"another process is training in run directory {run_dir}") from error
    except OSError as error:
        file.close()
        raise ConfigError(
            f"run directory {run_dir}: files cannot be locked there ({error.strerror}); give a "
            "--run-dir on another file system"
        ) from error
    with writing(run_dir):
        for folder in (run_dir, run_dir / "checkpoints"):
            for path in folder.glob(PARTIAL_FILES):
                path.unlink(missing_ok=True)
    return file


def check_run_dir(run_dir: str | Path, config: Config) -> None:
    """Checks that a run directory is new or belongs to the same config; writes nothing.

    Raises:
        ConfigError: the directory holds a run of another config; every difference is listed.
    """
    run_dir = Path(run_dir)
    _check_is_ours(run_dir)
    saved = run_dir / "config.yaml"
    # Without checkpoints/ an earlier start failed before it trained: nothing to protect.
    if not saved.is_file() or not _has_trained(run_dir):
        return
    changed = [
        line
        for line in differences(_saved_config(run_dir), config)
        if not _may_change(line.split(":")[0], config)
    ]
    if changed:
        raise ConfigError(
            f"run directory {run_dir} holds a run of another config; give another --run-dir, "
            "or remove it to start anew. Different (there -> now):\n  " + "\n  ".join(changed)
        )


def check_run_data(run_dir: str | Path, categories: list[dict], data: dict[str, dict]) -> None:
    """Checks that a run that has trained goes on with the data it began with; writes nothing.

    Args:
        run_dir: the run directory.
        categories: of the data there is now, as in `categories.json`.
        data: `sepc_tf.data.fingerprint.fingerprint` of each split, as in `data.json`.

    Raises:
        DatasetError: images, boxes or categories are others than before.
        ConfigError: `categories.json` or `data.json` is damaged.
    """
    run_dir = Path(run_dir)
    if not _has_trained(run_dir):
        return
    if (run_dir / "categories.json").is_file():
        there = read_categories(run_dir)
        changed = category_differences(there, categories, (f"{run_dir}", "the data"))
        if changed:
            raise DatasetError(
                f"run directory {run_dir} was made for other categories than the data has:\n  "
                + "\n  ".join(changed)
            )
    saved = run_dir / "data.json"
    if not saved.is_file():
        if step_files(run_dir / "checkpoints"):
            log.warning(
                "%s has no data.json (older runs have none): whether the data is still the same "
                "could not be checked",
                run_dir,
            )
        return
    there = _read(saved)
    for split, now in data.items():
        before = there.get(split) if isinstance(there, dict) else None
        if not isinstance(before, dict):
            raise ConfigError(f"{saved} is damaged; remove it to go on with the data as it is")
        if before != now:
            raise DatasetError(
                f"data.{split} is not the data that run directory {run_dir} began with: "
                f"{before.get('images')} images with {before.get('boxes')} boxes then, "
                f"{now['images']} with {now['boxes']} now (ids, file names, sizes, boxes and "
                "labels are compared). Give the data of that run, or another --run-dir"
            )


def prepare_run_dir(run_dir: str | Path, config: Config) -> Path:
    """Creates a run directory with its `config.yaml`, after `check_run_dir`.

    Returns:
        The directory.

    Raises:
        ConfigError: the directory holds a run of another config; every difference is listed.
        OutputError: it cannot be written.

    Example:
        >>> prepare_run_dir("runs/new", load_config("demo_sepc_lite")).as_posix()
        'runs/new'
    """
    check_run_dir(run_dir, config)
    write_text(Path(run_dir) / "config.yaml", f"{_HEAD}{config_to_yaml(config)}{_END}")
    return Path(run_dir)


def write_environment(
    run_dir: str | Path, config: Config, strategy: tf.distribute.Strategy
) -> None:
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


def read_categories(run_dir: str | Path) -> list[dict]:
    """Reads `categories.json`.

    Raises:
        ConfigError: it is missing, damaged, or something else.

    Example:
        >>> read_categories("runs/demo")[0]
        {'id': 1, 'name': 'zero'}
    """
    path = Path(run_dir) / "categories.json"
    categories = _read(path)
    if not are_categories(categories):
        raise ConfigError(
            f'{path}: expected a list of {{"id": 1, "name": "cat"}}, one for each class; {_ANEW}'
        )
    return categories


def load_run(
    run_dir: str | Path,
    checkpoint: str | Path = "best",
    overrides: tuple | list = (),
    strategy: tf.distribute.Strategy | None = None,
) -> Run:
    """Builds a run's detector and loads its weights.

    Args:
        run_dir: the run directory.
        checkpoint: "best" (highest AP), "last" (newest step), or the path of a checkpoint.
        overrides: `"dotted.key=value"` strings, as for `load_config`.
        strategy: the `tf.distribute.Strategy` to build the detector for; by default the current
            one, which is a single device unless it was set.

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
    strategy = strategy or tf.distribute.get_strategy()
    config = run_config(run_dir, overrides)
    categories = read_categories(run_dir)
    path = checkpoint_path(run_dir, checkpoint)
    arrays, meta = read_checkpoint(path)
    with strategy.scope():
        detector = build_detector(config.detector, num_classes=len(categories))
    averages = section(arrays, "ema")
    assign_variables(named_variables(detector), averages or section(arrays, "model"), path)
    batch_size = _images_per_device(run_dir, config) * strategy.num_replicas_in_sync
    return Run(config, detector, categories, path, meta["step"], strategy, batch_size)


def packaged_run(name: str) -> Path:
    """The run directory of a trained detector that comes with the package.

    Args:
        name: of the detector; there is "demo", which finds handwritten digits
            (docs/demo_model.md).

    Raises:
        ConfigError: there is none of this name.

    Example:
        >>> packaged_run("demo").name
        'demo_model'
    """
    if name not in PACKAGED_RUNS:
        raise ConfigError(f"no packaged model is named {name}; there is {', '.join(PACKAGED_RUNS)}")
    return PACKAGED_RUNS[name]


def run_config(run_dir: str | Path, overrides: tuple | list = ()) -> Config:
    """The config of a run, as its detector is built again: the checkpoint has the weights.

    Args:
        run_dir: the run directory.
        overrides: `"dotted.key=value"` strings, as for `load_config`.

    Raises:
        ConfigError: the folder is no run directory.

    Example:
        >>> run_config("runs/demo").detector.type
        'retinanet'
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(
            f"{run_dir} is no run directory (it has no config.yaml); train one with "
            "sepc-tf train --config FILE --run-dir DIR"
        )
    config = _saved_config(run_dir, overrides)
    config.detector.backbone.weights = None
    return config


def checkpoint_path(run_dir: str | Path, checkpoint: str | Path = "best") -> Path:
    """The file of a checkpoint of a run.

    Args:
        run_dir: the run directory.
        checkpoint: "best" (highest AP), "last" (newest step), or the path of a checkpoint.

    Raises:
        CheckpointError: the run has none of this name.

    Example:
        >>> checkpoint_path("runs/demo").name
        'best.npz'
    """
    checkpoints = Path(run_dir) / "checkpoints"
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


def _check_is_ours(run_dir):
    """Refuses a folder with content that is no run directory."""
    with writing(run_dir):
        names = {path.name for path in run_dir.iterdir()} if run_dir.exists() else set()
    partial = {name for name in names if name.endswith(".partial")}
    if names - partial - {".lock"} and "config.yaml" not in names:
        raise ConfigError(
            f"run directory {run_dir} is not empty and holds no config.yaml; give another --run-dir"
        )


def _saved_config(run_dir, overrides=()):
    path = run_dir / "config.yaml"
    text = path.read_text(encoding="utf-8", errors="replace")
    is_empty = all(line.startswith("#") or not line.strip() for line in text.splitlines())
    if is_empty or (text.startswith(_HEAD) and not text.endswith(_END)):
        raise ConfigError(
            f"{path} is {'empty' if is_empty else 'cut off'}, so it is not known what was trained "
            "there; copy the config of that run to it, or give another --run-dir"
        )
    return load_config(path, overrides)


def _has_trained(run_dir):
    return (run_dir / "checkpoints").is_dir()


def _may_change(key, config):
    if key == "train.epochs":
        return config.train.schedule.type != "cosine"  # a cosine ends with the last epoch
    return key in FREE_TO_CHANGE


_ANEW = "remove it and start the training again, which writes it anew"


def _read(path):
    """The content of a JSON file of a run."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {_ANEW}") from error


def _images_per_device(run_dir, config):
    """Images that a device had at a time in training."""
    try:
        replicas = max(1, int(read_json(run_dir / "environment.json")["replicas"]))
    except (OSError, ValueError, TypeError, KeyError):
        return min(2, config.train.batch_size)  # converted: as the authors trained
    return max(1, config.train.batch_size // replicas)


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
