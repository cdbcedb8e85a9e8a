"""One training, from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from pathlib import Path

import tensorflow as tf

from sepc_tf.allocator import keep_freed_memory
from sepc_tf.checkpoints.variables import assign_variables, named_variables
from sepc_tf.config import Config, ConfigError, config_to_yaml
from sepc_tf.data.categories import categories_of, category_differences
from sepc_tf.data.fingerprint import fingerprint
from sepc_tf.data.sources import evaluation_pipeline, load_split, training_pipeline
from sepc_tf.errors import DatasetError, OutputError
from sepc_tf.evaluation.run import Evaluator
from sepc_tf.files import write_json
from sepc_tf.runs import (
    check_run_data,
    check_run_dir,
    lock_run_dir,
    prepare_run_dir,
    write_environment,
)
from sepc_tf.training.checkpoints import read_checkpoint, read_latest, section, step_files
from sepc_tf.training.distribution import is_chief, make_strategy
from sepc_tf.training.evaluation import Evaluation
from sepc_tf.training.global_state import global_state
from sepc_tf.training.non_finite import StopOnNonFinite
from sepc_tf.training.optimizers import make_optimizer
from sepc_tf.training.progress import ProgressBar
from sepc_tf.training.saving import Checkpoints
from sepc_tf.training.schedules import make_schedule
from sepc_tf.training.state import RunState, StepCounter
from sepc_tf.training.tensorboard import LogWriter, TensorBoardLog
from sepc_tf.training.termination import Termination
from sepc_tf.training.weight_average import WeightAverage
from sepc_tf.zoo import DETECTORS, build_detector

log = logging.getLogger(__name__)


def train(config: Config, run_dir: str | Path) -> list[dict]:
    """Trains a detector into a run directory, continuing what is there.

    A run that was stopped at any moment and is started again ends with the weights of one that
    was not: the data order is a function of seed and step, and a checkpoint holds the optimizer's
    state.

    Keras' global policy, TensorFlow's determinism and the handler of SIGTERM are afterwards what
    they were before; the global seeds of Python, NumPy and TensorFlow are not, and freed memory
    stays with the process (`keep_freed_memory`).

    Args:
        config: a `sepc_tf.config.Config`.
        run_dir: the run directory, see `sepc_tf.runs`.

    Returns:
        A list with one dict of metrics per evaluated epoch.

    Raises:
        ConfigError: a setting cannot be used here, or the run directory is another run's.
        DatasetError: the data cannot be used, or is not what the run began with.
        NonFiniteLossError: the loss became NaN or infinite.
        OutputError: a file cannot be written; what was saved before is as it was.
        Terminated: SIGTERM came; the state has been saved.

    Example, which takes minutes on two cores:
        >>> history = train(load_config("demo_sepc_lite"), "runs/demo")  # doctest: +SKIP
        >>> round(history[-1]["AP"], 2)  # doctest: +SKIP
        0.64
    """
    keep_freed_memory()
    termination = Termination()
    try:
        with termination.listening(), contextlib.ExitStack() as on_exit:
            return _train(config, Path(run_dir), termination, on_exit)
    except OutputError as error:
        if not step_files(Path(run_dir) / "checkpoints"):
            raise
        raise OutputError(
            f"{error}. Started again with the same run directory, the run continues from its last "
            "checkpoint"
        ) from error


def _train(config, run_dir, termination, on_exit):
    # ---- devices, run directory ----------------------------------------------------------------
    strategy = make_strategy(config.train.strategy, config.train.cpu_replicas)
    replicas = strategy.num_replicas_in_sync
    if config.train.batch_size % replicas:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} images cannot be split evenly over "
            f"{replicas} replicas"
        )
    # Of several workers one writes; the others read its checkpoints from the same directory.
    chief = is_chief(strategy)
    if chief:
        on_exit.enter_context(lock_run_dir(run_dir))
        check_run_dir(run_dir, config)

    # ---- randomness, precision -----------------------------------------------------------------
    settings = config.train
    on_exit.enter_context(
        global_state(settings.seed, settings.deterministic, settings.mixed_precision)
    )

    # ---- data ----------------------------------------------------------------------------------
    train_set = load_split(config.data, "train")
    val_set = load_split(config.data, "val")
    categories = categories_of(train_set)
    different = category_differences(
        categories, categories_of(val_set), (train_set.name, val_set.name)
    )
    if different:
        raise DatasetError(
            "training and validation need the same categories:\n  " + "\n  ".join(different)
        )
    if chief:
        data = {"train": fingerprint(train_set), "val": fingerprint(val_set)}
        check_run_data(run_dir, categories, data)
        prepare_run_dir(run_dir, config)
        write_json(run_dir / "categories.json", categories)
        write_json(run_dir / "data.json", data)
        write_environment(run_dir, config, strategy)
    masks = DETECTORS[config.detector.type].needs_masks
    pipeline = training_pipeline(train_set, config, masks)
    state = RunState(pipeline.steps_per_epoch, writes=chief)
    total_steps = config.train.epochs * state.steps_per_epoch

    # ---- detector and optimizer ----------------------------------------------------------------
    saved = read_latest(run_dir / "checkpoints", warn=log.warning)
    backbone = config.detector.backbone
    if saved:  # the checkpoint holds the backbone: its file may be gone
        backbone = dataclasses.replace(backbone, weights=None)
    detector_config = dataclasses.replace(config.detector, backbone=backbone)
    schedule = make_schedule(config.train, state.steps_per_epoch)
    with strategy.scope():
        detector = build_detector(
            detector_config, train_set.num_classes, config.data.size_divisor, config.train.seed
        )
        optimizer = make_optimizer(config.train.optimizer, schedule)
        detector.compile(
            optimizer=optimizer,
            clip_norm=config.train.optimizer.clip_norm,
            weight_decay=0.0
            if config.train.optimizer.decoupled_weight_decay
            else config.train.optimizer.weight_decay,
            bias_lr_mult=config.train.optimizer.bias_lr_mult,
            bias_decay_mult=config.train.optimizer.bias_decay_mult,
            jit_compile=config.train.jit_compile,
        )

    converted = run_dir / "checkpoints" / "best.npz"
    if converted.is_file() and not step_files(converted.parent):
        # What `sepc-tf convert` left here: fine-tuning starts from it.
        arrays, _ = read_checkpoint(converted)
        assign_variables(named_variables(detector), section(arrays, "model"), converted)
        log.info("starting from the weights of %s", converted)

    # ---- callbacks -----------------------------------------------------------------------------
    writer = LogWriter(run_dir / "tensorboard" if chief else None)
    on_exit.callback(writer.close)
    average = (
        WeightAverage(state, detector, config.train.ema_decay) if config.train.ema_decay else None
    )
    checkpoints = Checkpoints(
        state,
        detector,
        run_dir / "checkpoints",
        config.train.checkpoint_every,
        config.train.keep_checkpoints,
        average,
        termination,
    )
    evaluator = Evaluator(
        detector,
        val_set,
        evaluation_pipeline(val_set, config),
        strategy,
        config.evaluation.iou_thresholds,
    )
    evaluation = Evaluation(
        state,
        lambda: evaluator.evaluate_and_log(writer, state.step),
        checkpoints,
        run_dir / "history.json",
        config.train.evaluate_every,
        config.train.epochs,
    )
    progress = ProgressBar(state, total_steps, config.train.batch_size, config.train.log_every)
    on_exit.callback(progress.close)
    callbacks = [
        StepCounter(state),
        StopOnNonFinite(state, pipeline.files_of_step),
        *([average] if average else []),
        TensorBoardLog(state, writer, schedule, config.train.batch_size, config.train.log_every),
        progress,
        checkpoints,
        evaluation,
    ]

    # ---- continue ------------------------------------------------------------------------------
    if saved:
        checkpoints.restore(*saved, source=run_dir / "checkpoints")
        log.info("continuing at step %d of %d", state.step, total_steps)
    else:
        pretrained = backbone.weights or converted.is_file()
        if not pretrained and (backbone.frozen_stages >= 0 or backbone.norm != "sync"):
            log.warning(
                "detector.backbone.weights is not set: the frozen parts of the backbone and its "
                "batch norm statistics stay as they were initialised"
            )
        with writer.as_default(step=0):
            tf.summary.text("config", f"```\n{config_to_yaml(config)}```")
    del saved  # hundreds of megabytes
    evaluation.restore()
    evaluation.evaluate_if_due()  # the process may have been killed before an epoch's evaluation

    # ---- train ---------------------------------------------------------------------------------
    log.info(
        "%s (%s): %d epochs of %d steps, %d images a step on %d replica(s), peak learning rate "
        "%.3g",
        config.detector.type,
        ", ".join(detector.parts),
        config.train.epochs,
        state.steps_per_epoch,
        config.train.batch_size,
        replicas,
        schedule.peak,
    )
    while state.step < total_steps:
        # Two calls at most: the rest of an epoch cut short, then all whole epochs.
        done_in_epoch = state.step % state.steps_per_epoch
        last_epoch = state.epoch + 1 if done_in_epoch else config.train.epochs
        detector.fit(
            pipeline.training_batches(state.step),
            initial_epoch=state.epoch,
            epochs=last_epoch,
            steps_per_epoch=state.steps_per_epoch - done_in_epoch,
            callbacks=callbacks,
            shuffle=False,  # the pipeline does
            verbose=0,
        )
    return state.history
