"""The detections of a run: those that `sepc-tf evaluate` left, or new ones."""

from __future__ import annotations

import logging
from pathlib import Path

from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.sources import evaluation_pipeline, load_split
from sepc_tf.evaluation.origin import detections_origin, up_to_date
from sepc_tf.evaluation.run import evaluate_run
from sepc_tf.files import read_json
from sepc_tf.runs import checkpoint_path, load_run, run_config
from sepc_tf.training.distribution import make_strategy

log = logging.getLogger(__name__)


def run_detections(
    run_dir: str | Path, checkpoint: str | Path = "best", overrides: tuple | list = ()
) -> tuple[CocoDataset, list[dict]]:
    """The validation set of a run and what the run detects on it.

    `RUN_DIR/evaluation/detections.json` is taken when it was made by the same weights with the same
    settings on the same data set; otherwise the run is evaluated into that folder, as
    `sepc-tf evaluate` does it.

    Args:
        run_dir: the run directory.
        checkpoint: "best", "last" or a path, as for `load_run`.
        overrides: `"dotted.key=value"` strings, as for `load_config`.

    Returns:
        (`CocoDataset`, list in COCO's result format).

    Raises:
        UserError: the run or its data cannot be used.

    Example, which builds the detector and takes seconds:
        >>> dataset, results = run_detections("runs/demo")  # doctest: +SKIP
        >>> metrics = evaluate_detections(dataset, results)  # doctest: +SKIP
    """
    directory = Path(run_dir) / "evaluation"
    config = run_config(run_dir, overrides)
    path = checkpoint_path(run_dir, checkpoint)
    dataset = load_split(config.data, "val")
    if path.is_file() and up_to_date(
        directory, detections_origin(config.detector, config.data, path, dataset)
    ):
        log.info("detections of %s", directory / "detections.json")
    else:
        run = load_run(run_dir, path, overrides, make_strategy("mirrored"))
        evaluate_run(run, dataset, evaluation_pipeline(dataset, config, run.batch_size), directory)
    return dataset, read_json(directory / "detections.json")
