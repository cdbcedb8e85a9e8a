"""One training, from top to bottom."""

import logging
from pathlib import Path

import keras
import tensorflow as tf

from sepc_tf.checkpoints.variables import assign_variables, named_variables
from sepc_tf.config import ConfigError, config_to_yaml
from sepc_tf.data.sources import evaluation_pipeline, load_split, training_pipeline
from sepc_tf.errors import DatasetError
from sepc_tf.evaluation.run import Evaluator
from sepc_tf.files import read_json, write_json
from sepc_tf.runs import lock_run_dir, prepare_run_dir, write_environment
from sepc_tf.training.callbacks import (
    Checkpoints,
    Evaluation,
    ProgressBar,
    RunState,
    StepCounter,
    StopOnNonFinite,
    TensorBoardLog,
    WeightAverage,
)
from sepc_tf.training.checkpoints import read_checkpoint, read_latest, section, step_files
from sepc_tf.training.distribution import is_chief, make_strategy
from sepc_tf.training.optimizers import make_optimizer
from sepc_tf.training.schedules import make_schedule
from sepc_tf.zoo import build_detector

log = logging.getLogger(__name__)


def train(config, run_dir):
    """Trains a detector into a run directory, continuing what is there.

    A run that was stopped at any moment and is started again ends with the weights of one that
    was not: the data order is a function of seed and step, and a checkpoint holds the optimizer's
    state.

    Args:
        config: a `sepc_tf.config.Config`.
        run_dir: the run directory, see `sepc_tf.runs`.

    Returns:
        A list with one dict of metrics per evaluated epoch.

    Raises:
        ConfigError: a setting cannot be used here, or the run directory is another run's.
        DatasetError: the data cannot be used.
        NonFiniteLossError: the loss became NaN or infinite.
        Terminated: SIGTERM came; the state has been saved.
    """
    # ---- devices, run directory ----------------------------------------------------------------
    strategy = make_strategy(config.train.strategy, config.train.cpu_replicas)
    replicas = strategy.num_replicas_in_sync
    # Of several workers one writes; the others read its checkpoints from the same directory.
    chief = is_chief(strategy)
    run_dir = Path(run_dir)
    lock = None
    if chief:
        prepare_run_dir(run_dir, config)
        lock = lock_run_dir(run_dir)
        write_environment(run_dir, config, strategy)
    if config.train.batch_size % replicas:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} images cannot be split evenly over "
            f"{replicas} replicas"
        )

    # ---- randomness, precision -----------------------------------------------------------------
    keras.utils.set_random_seed(config.train.seed)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.mixed_precision.set_global_policy(config.train.mixed_precision or "float32")

    # ---- data ----------------------------------------------------------------------------------
    train_set = load_split(config.data, "train")
    val_set = load_split(config.data, "val")
    if val_set.category_ids != train_set.category_ids:
        raise DatasetError(
            f"{val_set.name} has category ids {list(val_set.category_ids)}, {train_set.name} has "
            f"{list(train_set.category_ids)}: training and validation need the same categories"
        )
    categories = [
        {"id": number, "name": name}
        for number, name in zip(train_set.category_ids, train_set.class_names)
    ]
    if chief:
        write_json(run_dir / "categories.json", categories)
    pipeline = training_pipeline(train_set, config)
    state = RunState(pipeline.steps_per_epoch, writes=chief)
    total_steps = config.train.epochs * state.steps_per_epoch

    # ---- detector and optimizer ----------------------------------------------------------------
    schedule = make_schedule(config.train, state.steps_per_epoch)
    with strategy.scope():
        detector = build_detector(config.detector, train_set.num_classes, config.data.size_divisor)
        optimizer = make_optimizer(config.train.optimizer, schedule)
        detector.compile(
            optimizer=optimizer,
            clip_norm=config.train.optimizer.clip_norm,
            weight_decay=0.0
            if config.train.optimizer.decoupled_weight_decay
            else config.train.optimizer.weight_decay,
            jit_compile=config.train.jit_compile,
        )

    converted = run_dir / "checkpoints" / "best.npz"
    if converted.is_file() and not step_files(converted.parent):
        # What `sepc-tf convert` left here: fine-tuning starts from it.
        arrays, _ = read_checkpoint(converted)
        assign_variables(named_variables(detector), section(arrays, "model"), converted)
        log.info("starting from the weights of %s", converted)

    # ---- callbacks -----------------------------------------------------------------------------
    writer = (
        tf.summary.create_file_writer(str(run_dir / "tensorboard"))
        if chief
        else tf.summary.create_noop_writer()
    )
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
    )
    evaluator = Evaluator(detector, val_set, evaluation_pipeline(val_set, config), strategy)
    evaluation = Evaluation(
        state,
        lambda: evaluator.evaluate_and_log(writer, state.step),
        checkpoints,
        run_dir / "history.json",
        config.train.evaluate_every,
        config.train.epochs,
    )
    progress = ProgressBar(state, total_steps, config.train.batch_size, config.train.log_every)
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
    saved = read_latest(run_dir / "checkpoints", warn=log.warning)
    if saved:
        checkpoints.restore(*saved, source=run_dir / "checkpoints")
        history = read_json(run_dir / "history.json", default=[])
        state.history = [entry for entry in history if entry["step"] <= state.step]
        log.info("continuing at step %d of %d", state.step, total_steps)
    else:
        backbone = config.detector.backbone
        pretrained = backbone.weights or converted.is_file()
        if not pretrained and (backbone.frozen_stages >= 0 or backbone.norm != "sync"):
            log.warning(
                "detector.backbone.weights is not set: the frozen parts of the backbone and its "
                "batch norm statistics stay as they were initialised"
            )
        with writer.as_default(step=0):
            tf.summary.text("config", f"```\n{config_to_yaml(config)}```")
    evaluation.evaluate_if_due()  # the process may have been killed before an epoch's evaluation

    # ---- train ---------------------------------------------------------------------------------
    log.info(
        "%s, head %s: %d epochs of %d steps, %d images a step on %d replica(s), peak learning rate "
        "%.3g",
        config.detector.type,
        config.detector.head.variant,
        config.train.epochs,
        state.steps_per_epoch,
        config.train.batch_size,
        replicas,
        schedule.peak,
    )
    try:
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
    finally:
        progress.close()
        writer.flush()
        if lock:
            lock.close()
    return state.history
