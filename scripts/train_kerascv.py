"""Trains the stock `keras_cv.models.RetinaNet` as a config of ours says, for comparison.

    python scripts/train_kerascv.py --config deeppcb_baseline --run-dir runs/kerascv

The same images in the same order, augmented alike, the same number of steps, the optimizer, its
schedule, the average of weights, the backbone and the anchors' sizes are those of the config.
Pyramid, heads, labels, losses and decoding are KerasCV's.
Evaluated by COCO's own evaluation, as every run here. What is written is a run directory of which
`sepc-tf compare` reads the evaluation; it cannot be continued, and nothing but KerasCV can use the
weights (model.weights.h5).
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import sys
from pathlib import Path

import keras
import keras_cv
import numpy as np
import tensorflow as tf

from sepc_tf import keep_freed_memory
from sepc_tf.checkpoints.variables import named_variables, read_variables
from sepc_tf.config import Config, load_config
from sepc_tf.data.categories import categories_of
from sepc_tf.data.preprocess import resized_size
from sepc_tf.data.sources import evaluation_pipeline, load_split, training_pipeline
from sepc_tf.errors import ConfigError, UserError
from sepc_tf.evaluation.coco import evaluate_detections, to_coco_results, write_evaluation
from sepc_tf.evaluation.origin import detections_origin
from sepc_tf.files import write_json
from sepc_tf.ops.boxes import rescale_boxes
from sepc_tf.ops.pixels import normalized_batch
from sepc_tf.progress import track
from sepc_tf.runs import lock_run_dir, prepare_run_dir, write_environment
from sepc_tf.training.checkpoints import write_checkpoint
from sepc_tf.training.global_state import global_state
from sepc_tf.training.optimizers import make_optimizer
from sepc_tf.training.progress import ProgressBar
from sepc_tf.training.schedules import make_schedule
from sepc_tf.training.state import RunState, StepCounter
from sepc_tf.training.weight_average import WeightAverage
from sepc_tf.zoo import build_backbone

STRIDES = (8, 16, 32, 64, 128)


def train_kerascv(config: Config, run_dir: Path, filters: int | None = None) -> dict:
    """Trains and evaluates.

    Args:
        config: of a RetinaNet on a ResNet, for one device.
        run_dir: a new run directory.
        filters: channels of KerasCV's pyramid and heads, which stock code fixes at 256; None for
            the stock layers.

    Returns:
        dict of the metrics, as `evaluation/metrics.json` has it.

    Raises:
        ConfigError: a setting that KerasCV's RetinaNet has not, or the directory holds a run.
    """
    check(config)
    with contextlib.ExitStack() as on_exit:
        on_exit.enter_context(lock_run_dir(run_dir))
        if (run_dir / "checkpoints").is_dir():
            raise ConfigError(f"{run_dir} holds a run; give another --run-dir")
        on_exit.enter_context(global_state(config.train.seed, config.train.deterministic, None))
        train_set, val_set = (load_split(config.data, split) for split in ("train", "val"))
        prepare_run_dir(run_dir, config)
        write_json(run_dir / "categories.json", categories_of(train_set))
        write_environment(run_dir, config, tf.distribute.get_strategy())

        model = build(config, train_set.num_classes, filters)
        pipeline = training_pipeline(train_set, config)
        state = RunState(pipeline.steps_per_epoch)
        steps = config.train.epochs * state.steps_per_epoch
        model.compile(
            optimizer=optimizer(config, state.steps_per_epoch),
            box_loss="smoothl1",
            classification_loss="focal",
            jit_compile=False,
        )
        progress = ProgressBar(state, steps, config.train.batch_size, config.train.log_every)
        on_exit.callback(progress.close)
        decay = config.train.ema_decay
        average = WeightAverage(state, model, decay) if decay else None
        size = static_size(train_set, config, max(config.data.short_side))
        model.fit(
            pipeline.training_batches().map(functools.partial(kerascv_batch, size=size)),
            epochs=config.train.epochs,
            steps_per_epoch=state.steps_per_epoch,
            callbacks=[StepCounter(state), *([average] if average else []), progress],
            shuffle=False,  # the pipeline does
            verbose=0,
        )
        with average.applied() if average else contextlib.nullcontext():
            metrics, results = evaluate(model, val_set, config)
            model.save_weights(run_dir / "model.weights.h5")
            arrays = read_variables(named_variables(model))
    meta = {"step": state.step, "seconds": state.seconds, "metrics": metrics.summary}
    (run_dir / "checkpoints").mkdir()
    best = run_dir / "checkpoints/best.npz"
    write_checkpoint(best, {f"kerascv/{name}": value for name, value in arrays.items()}, meta)
    entry = {"epoch": config.train.epochs, "step": state.step, "seconds": state.seconds}
    write_json(run_dir / "history.json", [{**entry, **metrics.summary}])
    write_evaluation(run_dir / "evaluation", metrics, results)
    origin = detections_origin(config.detector, config.data, best, val_set)
    write_json(run_dir / "evaluation/origin.json", origin)
    return metrics.to_dict()


def check(config):
    """Raises ConfigError for what KerasCV's RetinaNet would not do as the config says."""
    train, detector = config.train, config.detector
    anchors = getattr(detector.options, "anchors", None)
    expected = {
        "detector.type": (detector.type, "retinanet"),
        "detector.backbone.type": (detector.backbone.type, "resnet"),
        "detector.options.anchors.scales": (anchors and anchors.scales, None),
        "train.mixed_precision": (train.mixed_precision, None),
        "train.strategy": (train.strategy, "one"),
    }
    if train.optimizer.weight_decay:
        decoupled = train.optimizer.decoupled_weight_decay
        expected["train.optimizer.decoupled_weight_decay"] = (decoupled, True)
    for key, (value, wanted) in expected.items():
        if value != wanted:
            wanted = "null" if wanted is None else wanted
            raise ConfigError(f"{key}: {value!r}: KerasCV's RetinaNet is trained with {wanted}")


def build(config, num_classes, filters):
    """A `keras_cv.models.RetinaNet` of the config's backbone, anchors and suppression."""
    detector = config.detector
    anchors = detector.options.anchors
    octave = range(anchors.scales_per_octave)
    generator = keras_cv.layers.AnchorGenerator(
        bounding_box_format="xyxy",
        sizes=[float(anchors.octave_base * stride) for stride in STRIDES],
        scales=[2 ** (i / anchors.scales_per_octave) for i in octave],
        aspect_ratios=[1 / ratio for ratio in anchors.ratios],  # KerasCV's are width / height
        strides=list(STRIDES),
        clip_boxes=True,
    )
    return keras_cv.models.RetinaNet(
        backbone=keras_cv_backbone(build_backbone(detector.backbone)),
        num_classes=num_classes,
        bounding_box_format="xyxy",
        anchor_generator=generator,
        prediction_decoder=keras_cv.layers.MultiClassNonMaxSuppression(
            "xyxy",
            from_logits=True,
            iou_threshold=detector.nms_iou,
            confidence_threshold=detector.score_threshold,
            max_detections=detector.max_detections,
        ),
        **heads(num_classes, len(octave) * len(anchors.ratios), filters),
    )


def keras_cv_backbone(backbone):
    """A backbone of ours as one of KerasCV's, whose ResNets cannot be narrower than 64 channels."""
    images = keras.Input((None, None, 3))
    levels = {"P3": "c3", "P4": "c4", "P5": "c5"}
    maps = [
        keras.layers.Activation("linear", name=name)(x)
        for name, x in zip(levels.values(), backbone(images)[-3:])
    ]
    # KerasCV looks the three layers up in the graph, which has to hold them all.
    wrapped = keras_cv.models.Backbone(inputs=images, outputs=maps)
    wrapped.pyramid_level_inputs = levels
    return wrapped


def heads(num_classes, num_anchors, filters):
    """Keyword arguments of a `RetinaNet`: its pyramid and heads, as wide as `filters`."""
    bias = keras.initializers.Constant(-np.log((1 - 0.01) / 0.01))
    outputs = {"classification_head": (num_anchors * num_classes, bias)}
    outputs["box_head"] = (num_anchors * 4, keras.initializers.Zeros())
    if filters is None:
        parts = keras_cv.models.retinanet
        return {
            name: parts.PredictionHead(output_filters=count, bias_initializer=initial)
            for name, (count, initial) in outputs.items()
        }
    convs = {
        name: keras.Sequential(
            [
                *[conv(filters, activation="relu") for _ in range(3)],
                conv(count, bias_initializer=initial),
            ],
            name=name,
        )
        for name, (count, initial) in outputs.items()
    }
    return {"feature_pyramid": NarrowPyramid(filters), **convs}


def conv(filters, **options):
    """A convolution as in KerasCV's heads."""
    return keras.layers.Conv2D(
        filters, 3, padding="same", kernel_initializer="orthogonal", **options
    )


class NarrowPyramid(keras_cv.models.retinanet.FeaturePyramid):
    """KerasCV's feature pyramid with another number of channels than 256."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        for level in (3, 4, 5):
            setattr(self, f"conv_c{level}_1x1", keras.layers.Conv2D(filters, 1, 1, "same"))
        for level in (3, 4, 5, 6, 7):
            step = 2 if level > 5 else 1
            setattr(self, f"conv_c{level}_3x3", keras.layers.Conv2D(filters, 3, step, "same"))

    def build(self, input_shape):
        for level in (3, 4, 5):
            channels = input_shape[f"P{level}"][-1]
            getattr(self, f"conv_c{level}_1x1").build((None, None, None, channels))
            getattr(self, f"conv_c{level}_3x3").build((None, None, None, self.filters))
        self.conv_c6_3x3.build((None, None, None, input_shape["P5"][-1]))
        self.conv_c7_3x3.build((None, None, None, self.filters))
        self.built = True

    def compute_output_shape(self, input_shape):
        return tuple(
            (*shape[:-1], self.filters) for shape in super().compute_output_shape(input_shape)
        )


def optimizer(config, steps_per_epoch):
    """The config's optimizer, which also clips the gradients."""
    settings = config.train.optimizer
    if settings.clip_norm is not None:
        options = {**settings.options, "global_clipnorm": settings.clip_norm}
        settings = dataclasses.replace(settings, options=options)
    return make_optimizer(settings, make_schedule(config.train, steps_per_epoch))


def static_size(dataset, config, short_side):
    """Height and width that hold every image of a data set: KerasCV needs one static size."""
    sizes = [
        resized_size(height, width, short_side, config.data.long_side).numpy()
        for height, width in {(image.height, image.width) for image in dataset.images}
    ]
    divisor = config.data.size_divisor
    return [int(-(-side // divisor) * divisor) for side in np.max(sizes, axis=0)]


def padded(images, size):
    """`[B, h, w, 3]` images with zeros at the bottom and the right."""
    height, width = tf.unstack(tf.shape(images)[1:3])
    images = tf.pad(images, [(0, 0), (0, size[0] - height), (0, size[1] - width), (0, 0)])
    return tf.ensure_shape(images, [None, *size, 3])


def kerascv_batch(batch, size):
    """A batch of ours as KerasCV takes it."""
    batch = normalized_batch(batch)
    labels = {"boxes": batch["boxes"], "classes": tf.cast(batch["labels"], tf.float32)}
    return padded(batch["images"], size), labels


def evaluate(model, dataset, config):
    """`CocoMetrics` and the detections they are of."""
    pipeline = evaluation_pipeline(dataset, config)
    size = static_size(dataset, config, config.data.test_short_side)

    @tf.function(autograph=False)
    def detect(batch):
        images = padded(batch["images"], size)
        found = model.decode_predictions(model({"images": images}, training=False), images)
        boxes = rescale_boxes(found["boxes"], batch["image_sizes"], pipeline.frame_sizes(batch))
        classes = tf.cast(found["classes"], tf.int32)
        return {"boxes": boxes, "scores": found["confidence"], "classes": classes}

    results = []
    for batch in track(pipeline.for_epoch(), pipeline.steps_per_epoch, "evaluating"):
        results += to_coco_results({**detect(batch), "image_ids": batch["image_ids"]}, dataset)
    return evaluate_detections(dataset, results, config.evaluation.iou_thresholds), results


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="a file, or a name")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--filters", type=int, help="channels of pyramid and heads; stock: 256")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.epochs=2")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    try:
        config = load_config(arguments.config, arguments.overrides)
        metrics = train_kerascv(config, arguments.run_dir, arguments.filters)
    except UserError as error:
        sys.exit(f"error: {error}")
    print("  ".join(f"{name} {100 * metrics[name]:.1f}" for name in ("AP", "AP50", "AP75")))


if __name__ == "__main__":
    main()
