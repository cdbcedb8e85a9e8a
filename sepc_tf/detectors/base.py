"""What all dense detectors share: forward, training step, decoding, saving.

This is the one place that touches KerasCV. `Detector` is a subclass of its `RetinaNet` for the sake
of code that expects one; everything the stock class does with the backbone, labels, losses and
predictions is replaced, for the faults listed in the methods' comments.
"""

import keras
import keras_cv
import tensorflow as tf

from sepc_tf import compat
from sepc_tf.ops.anchors import AnchorGenerator
from sepc_tf.ops.boxes import clip_boxes, rescale_boxes
from sepc_tf.ops.coders import BoxCoder, TBLRCoder
from sepc_tf.ops.matching import EffectiveAreaMatcher, MaxIoUMatcher
from sepc_tf.ops.nms import multiclass_nms, top_candidates

# `ops` knows nothing of Keras; only saving needs these names.
for _cls in (AnchorGenerator, BoxCoder, TBLRCoder, MaxIoUMatcher, EffectiveAreaMatcher):
    keras.saving.register_keras_serializable(package="sepc_tf")(_cls)


class Detector(keras_cv.models.RetinaNet):
    """A detector that predicts classes and boxes at every cell of a pyramid.

    `images -> backbone -> fpn -> towers -> head`. A subclass says what is learnt
    (`compute_losses`); it may also replace how outputs become scored boxes (`scored_boxes`).
    All weights exist once the constructor returns.

    Args:
        backbone: model or layer from images to maps of falling size, of which the last three are
            C3, C4, C5; or a KerasCV backbone, see `KerasCVFeatures`.
        fpn: layer from [C3, C4, C5] to a pyramid.
        towers: layer from a pyramid to `(cls_pyramid, box_pyramid)`.
        head: `PredictionHead`.
        anchor_generator: `AnchorGenerator`, one stride for each level.
        coder: `BoxCoder` or `TBLRCoder`; its convention is also that of clipping and NMS.
        score_threshold: detections have a score above it.
        nms_iou: a box is suppressed by a better one of its class above this IoU.
        nms_pre: candidates per level that enter NMS.
        max_detections: detections per image.

    Attributes:
        num_classes: number of object classes, without background.
        loss_names: names of the parts of the loss.

    Raises:
        ValueError: parts that do not fit together.

    Call arguments:
        images: `[B, H, W, 3]` float, as the backbone expects them; H and W multiples of 32.

    Returns:
        dict of `classification`, list of `[B, H_l, W_l, A * K]` float32 logits (channel a * K + c),
        and `box`, list of `[B, H_l, W_l, A * 4]` float32.
    """

    loss_names = ("classification", "box")

    def __init__(
        self,
        backbone,
        fpn,
        towers,
        head,
        *,
        anchor_generator,
        coder,
        score_threshold=0.05,
        nms_iou=0.5,
        nms_pre=1000,
        max_detections=100,
        name=None,
        **kwargs,
    ):
        # Past KerasCV's RetinaNet, which would build its own functional graph.
        super(keras_cv.models.RetinaNet, self).__init__(name=name, **kwargs)
        if head.num_anchors != anchor_generator.anchors_per_cell:
            raise ValueError(
                f"head.num_anchors ({head.num_anchors}) must equal the anchor generator's anchors "
                f"per cell ({anchor_generator.anchors_per_cell})"
            )
        check_same_convention(anchor_generator=anchor_generator, coder=coder)
        if hasattr(backbone, "pyramid_level_inputs"):
            backbone = KerasCVFeatures(backbone, name="backbone")
        self.backbone = backbone
        self.fpn = fpn
        self.towers = towers
        self.head = head
        self.anchor_generator = anchor_generator
        self.coder = coder
        self.convention = coder.convention
        self.num_classes = head.num_classes
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.nms_pre = nms_pre
        self.max_detections = max_detections
        self.clip_norm = None
        self.weight_decay = 0.0
        self._step_metrics = _StepMetrics(self.loss_names)
        self.build(None)

    @classmethod
    def from_parts(cls, backbone, fpn, towers, num_classes, convention="modern", **options):
        """Builds the detector with its published anchors, box code and head.

        Args:
            backbone, fpn, towers: as in the constructor.
            num_classes: number of object classes, without background.
            convention: "modern", or "mmdet1" for the authors' checkpoints.
            **options: further arguments of the constructor.

        Returns:
            A detector of this class.
        """
        raise NotImplementedError

    # ---------------------------------------------------------------- forward

    def build(self, input_shape):
        """Creates all weights; sizes are dynamic, so `input_shape` is not needed."""
        images = (None, None, None, 3)
        _build(self.backbone, images)
        features = self.backbone.compute_output_shape(images)
        features = [tuple(shape) for shape in features][-3:]
        _build(self.fpn, features)
        pyramid = self.fpn.compute_output_shape(features)
        strides = self.anchor_generator.strides
        if len(pyramid) != len(strides):
            raise ValueError(
                "anchor_generator must have one stride for each pyramid level; got "
                f"{len(strides)} strides and {len(pyramid)} levels"
            )
        _build(self.towers, pyramid)
        _build(self.head, self.towers.compute_output_shape(pyramid))
        self.built = True

    def call(self, images, training=None):
        features = self.backbone(images, training=training)
        pyramid = self.fpn(list(features)[-3:], training=training)
        return self.head(self.towers(pyramid, training=training), training=training)

    # ---------------------------------------------------------------- learning

    def compute_losses(self, outputs, batch):
        """The parts of the loss of one replica's share of the batch.

        Every part is already divided by a normaliser of the whole batch: summed over the replicas
        the parts are those of one device with all images.

        Args:
            outputs: what `call` returned.
            batch: dict of `boxes` `[B, M, 4]` float32 xyxy and `labels` `[B, M]` int32, both padded
                with -1, and `image_sizes` `[B, 2]` int32.

        Returns:
            dict from each of `loss_names` to a float32 scalar.
        """
        raise NotImplementedError

    def train_step(self, batch):
        """One update: forward, losses, gradients summed over replicas, clipped, decayed, applied.

        With g the gradient of the sum of the loss parts over the whole batch:
        `g <- g min(1, clip_norm / |g|)`, then `g <- g + weight_decay w` (as PyTorch's SGD), then
        the optimizer. If the loss or a gradient is not finite the step leaves no trace in weights,
        statistics or optimizer (except that a loss scale is lowered).

        Args:
            batch: dict as in `compute_losses`, and `images`.

        Returns:
            dict of epoch means `loss`, each loss part, `grad_norm` (before clipping), and of
            `non_finite`, 1.0 if this very step was refused, else 0.0.
        """
        # What the forward pass may change, kept to undo a refused step.
        statistics = [
            compat.variable_value(v)
            for v in self.non_trainable_variables
            if tf.as_dtype(v.dtype).is_floating
        ]
        before = [tf.identity(v) for v in statistics]
        variables = list(self.trainable_variables)
        scale = compat.loss_scale(self.optimizer)
        with tf.GradientTape() as tape:
            losses = self.compute_losses(self(batch["images"], training=True), batch)
            scaled = tf.add_n([losses[name] for name in self.loss_names]) * scale
        gradients = tape.gradient(scaled, variables)
        pairs = [(g, v) for g, v in zip(gradients, variables) if g is not None]
        if not pairs:
            raise ValueError("no trainable weight takes part in the loss; unfreeze some")
        gradients, variables = zip(*pairs)

        losses = self._sum_losses(losses)
        gradients = [
            g / scale for g in all_reduce_sum([tf.convert_to_tensor(g) for g in gradients])
        ]
        norm = tf.linalg.global_norm(gradients)
        if self.clip_norm is not None:
            factor = self.clip_norm / tf.maximum(norm, self.clip_norm)
            gradients = [g * factor for g in gradients]
        if self.weight_decay:
            gradients = [
                g + self.weight_decay * tf.cast(tf.convert_to_tensor(v), g.dtype)
                for g, v in zip(gradients, variables)
            ]
        finite = tf.math.is_finite(losses["loss"]) & tf.math.is_finite(norm)
        self._apply_or_undo(finite, gradients, variables, statistics, before)

        if compat.scales_loss(self.optimizer):
            # An overflow of the gradients is ordinary then: no fault, and no norm to average.
            weight, sound = tf.math.is_finite(norm), tf.math.is_finite(losses["loss"])
            norm = tf.where(weight, norm, 0.0)
        else:
            weight, sound = None, finite
        return {
            **self._step_metrics.update(losses, norm, weight),
            "non_finite": 1.0 - tf.cast(sound, tf.float32),
        }

    def make_train_function(self, force=False):
        """Keras' own, but for several workers on Keras 3; see `compat.several_workers_function`."""
        if force or self.train_function is None:
            self.train_function = compat.several_workers_function(self)
        return self.train_function or super().make_train_function(force)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing: all weights exist. Keras 3's cannot take a batch of several workers."""

    def _apply_or_undo(self, finite, gradients, variables, statistics, before):
        optimizer = self.optimizer

        def apply(gradients):
            compat.apply_gradients(optimizer, gradients, variables)

        # A condition around an update has to stand in cross-replica context (an update switches to
        # it, which is not possible inside a condition), or in replica context where a strategy
        # never switches.
        def decide(strategy, finite, gradients, before):
            def run(gradients):
                strategy.extended.call_for_each_replica(apply, args=(gradients,))

            def undo():
                for variable, value in zip(statistics, before):
                    strategy.extended.update(
                        variable, lambda v, x: v.assign(x), args=(value,), group=False
                    )

            finite = strategy.experimental_local_results(finite)[0]
            if compat.scales_loss(optimizer):  # decides by itself, and must see the overflow
                run(gradients)
                tf.cond(finite, _nothing, _effect(undo))
            else:
                tf.cond(finite, _effect(lambda: run(gradients)), _effect(undo))

        if tf.__internal__.distribute.strategy_supports_no_merge_call():

            def undo():
                for variable, value in zip(statistics, before):
                    variable.assign(value)

            if compat.scales_loss(optimizer):
                apply(gradients)
                tf.cond(finite, _nothing, _effect(undo))
            else:
                tf.cond(finite, _effect(lambda: apply(gradients)), _effect(undo))
        else:
            context = tf.distribute.get_replica_context()
            context.merge_call(decide, args=(finite, list(gradients), before))

    def _sum_losses(self, losses):
        """Loss parts of the whole batch, and their sum as "loss"."""
        values = all_reduce_sum([tf.stack([losses[name] for name in self.loss_names])])[0]
        parts = dict(zip(self.loss_names, tf.unstack(values)))
        return {"loss": tf.reduce_sum(values), **parts}

    def test_step(self, batch):
        """Losses of a batch in inference mode; means over the batches, keys as in `train_step`."""
        losses = self.compute_losses(self(batch["images"], training=False), batch)
        return self._step_metrics.update(self._sum_losses(losses))

    # ---------------------------------------------------------------- inference

    def decode(self, outputs, image_sizes, original_sizes=None):
        """Turns raw outputs into detections.

        Per level the `nms_pre` best cells' anchors by their highest class score; boxes clipped to
        the image; NMS of each class; the `max_detections` best. Plain TensorFlow: works for any
        sizes and inside a SavedModel.

        Args:
            outputs: what `call` returned.
            image_sizes: `[B, 2]` int32, height and width of the valid part of each image.
            original_sizes: `[B, 2]`, height and width of these in the pixels that boxes are wanted
                in, as in `rescale_boxes`; None where these are the pixels of the network's input.

        Returns:
            dict of `boxes` `[B, D, 4]` float32 xyxy, `scores` `[B, D]` float32, `classes` `[B, D]`
            int32 (-1 past the end), `num_detections` `[B]` int32; D = `max_detections`.
        """
        boxes, scores = self.scored_boxes(outputs, image_sizes)
        if original_sizes is not None:
            # Before NMS, where mmdet1's widths with a last pixel depend on the scale.
            boxes = rescale_boxes(boxes, image_sizes, original_sizes, self.convention)
        return multiclass_nms(
            boxes,
            scores,
            score_threshold=self.score_threshold,
            iou_threshold=self.nms_iou,
            max_detections=self.max_detections,
            convention=self.coder.convention,
        )

    def scored_boxes(self, outputs, image_sizes):
        """The candidates for NMS.

        Args:
            outputs, image_sizes: as in `decode`.

        Returns:
            `[B, N, 4]` float32 xyxy boxes, clipped, and `[B, N, K]` float32 scores; N is the sum
            over levels of `min(nms_pre, anchors of the level)`.
        """
        logits, codes = self.flatten_outputs(outputs)
        level_boxes, level_scores = [], []
        for anchors, level_logits, level_codes in zip(self.anchors(outputs), logits, codes):
            scores = tf.sigmoid(level_logits)
            rows = top_candidates(scores, self.nms_pre)
            codes_of_rows = tf.gather(level_codes, rows, axis=1, batch_dims=1)
            level_boxes.append(self.coder.decode(tf.gather(anchors, rows), codes_of_rows))
            level_scores.append(tf.gather(scores, rows, axis=1, batch_dims=1))
        boxes = clip_boxes(tf.concat(level_boxes, axis=1), image_sizes, self.coder.convention)
        return boxes, tf.concat(level_scores, axis=1)

    def detect(self, images, image_sizes, original_sizes=None):
        """Detections of a batch of preprocessed images; see `call` and `decode`."""
        return self.decode(self(images, training=False), image_sizes, original_sizes)

    def predict_step(self, batch):
        """Detections of a batch (`images` and `image_sizes`)."""
        return self.detect(batch["images"], batch["image_sizes"])

    def decode_predictions(self, predictions, images):
        """KerasCV's name for `decode`, for images without padding."""
        shape = tf.shape(images)
        return self.decode(predictions, tf.tile(shape[None, 1:3], [shape[0], 1]))

    # ---------------------------------------------------------------- shared by subclasses

    def anchors(self, outputs):
        """Anchors of each level of raw outputs: list of `[H_l * W_l * A, 4]` float32 xyxy."""
        return self.anchor_generator(level_sizes(outputs))

    def flatten_outputs(self, outputs):
        """Raw outputs as rows, one for each anchor.

        Args:
            outputs: what `call` returned.

        Returns:
            list of `[B, H_l * W_l * A, K]` logits and list of `[B, H_l * W_l * A, 4]` box codes,
            both float32, rows in the order (row, column, anchor).
        """

        def flat(maps, width):
            return [tf.reshape(tf.cast(x, tf.float32), [tf.shape(x)[0], -1, width]) for x in maps]

        return flat(outputs["classification"], self.num_classes), flat(outputs["box"], 4)

    # ---------------------------------------------------------------- compiling and saving

    @property
    def _default_save_signature(self):
        # Keras 3 would add a signature of its own to a SavedModel, with images of unknown rank.
        return None

    def compile(
        self, optimizer="sgd", *, clip_norm=None, weight_decay=0.0, jit_compile=False, **kwargs
    ):
        """Sets how `fit` trains. The losses are the detector's own.

        Args:
            optimizer: Keras optimizer or its name. It must not clip by itself.
            clip_norm: largest global norm of the gradients, or None.
            weight_decay: L2 penalty as in PyTorch's SGD: `weight_decay * w` is added to the clipped
                gradient of every trainable weight. (Decoupled decay is the optimizer's own
                `weight_decay`.)
            jit_compile: compile the train step with XLA (one device or GPUs; static image sizes).
            **kwargs: `run_eagerly`, `steps_per_execution`.

        Raises:
            ValueError: losses or metrics are given, or the optimizer clips by itself.

        Example:
            >>> detector.compile(keras.optimizers.SGD(0.01, momentum=0.9), clip_norm=35.0,
            ...                  weight_decay=1e-4)
            >>> detector.fit(dataset, epochs=12)
        """
        unknown = set(kwargs) - {"run_eagerly", "steps_per_execution"}
        if unknown:
            raise ValueError(
                "compile takes optimizer, clip_norm, weight_decay, jit_compile, run_eagerly, "
                f"steps_per_execution (the losses are the detector's own); got {sorted(unknown)}"
            )
        # Past KerasCV's compile, which demands Keras losses.
        super(keras_cv.models.RetinaNet, self).compile(
            optimizer=optimizer, loss=None, jit_compile=jit_compile, **kwargs
        )
        for clipping in ("clipnorm", "clipvalue", "global_clipnorm"):
            if getattr(self.optimizer, clipping, None) is not None:
                raise ValueError(
                    f"the optimizer has {clipping}, which is wrong under several replicas; "
                    "use compile(clip_norm=...) instead"
                )
        self.clip_norm = clip_norm
        self.weight_decay = weight_decay
        # Every replica returns the same numbers; "sum", Keras 2's choice, would add them up.
        self.distribute_reduction_method = "first"
        compat.prepare_optimizer(self.optimizer, self.trainable_variables)

    def get_compile_config(self):
        if getattr(self, "optimizer", None) is None:
            return None
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "clip_norm": self.clip_norm,
            "weight_decay": self.weight_decay,
            "jit_compile": bool(self.jit_compile),
        }

    def compile_from_config(self, config):
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
        self.compile(**{**config, "optimizer": optimizer})

    @property
    def metrics(self):
        """The means over an epoch of the losses and the gradient norm."""
        return self._step_metrics.trackers

    @property
    def layers(self):
        """The parts. (KerasCV drops a backbone that is not part of a functional graph.)"""
        return [self.backbone, self.fpn, self.towers, self.head]

    def __dir__(self):
        # KerasCV hides the backbone from the weight saving.
        return object.__dir__(self)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "backbone": serialize(self.backbone),
            "fpn": serialize(self.fpn),
            "towers": serialize(self.towers),
            "head": serialize(self.head),
            "anchor_generator": serialize(self.anchor_generator),
            "coder": serialize(self.coder),
            "score_threshold": self.score_threshold,
            "nms_iou": self.nms_iou,
            "nms_pre": self.nms_pre,
            "max_detections": self.max_detections,
        }

    @classmethod
    def from_config(cls, config):
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                if isinstance(value, dict) and "class_name" in value
                else value
                for name, value in config.items()
            }
        )


@keras.saving.register_keras_serializable(package="sepc_tf")
class KerasCVFeatures(keras.layers.Layer):
    """C3, C4 and C5 of a KerasCV backbone.

    Batch norms use their stored statistics in training too: left free, they would differ between
    replicas, and batches are small.

    Args:
        model: KerasCV backbone with `pyramid_level_inputs`, of dynamic image size
            (`input_shape=(None, None, 3)`).

    Call arguments:
        images: `[B, H, W, 3]`, scaled as the backbone expects.

    Returns:
        list of three maps of strides 8, 16 and 32.

    Example:
        >>> backbone = keras_cv.models.ResNet18V2Backbone(
        ...     include_rescaling=False, input_shape=(None, None, 3))
        >>> [c.shape[1] for c in KerasCVFeatures(backbone)(tf.zeros([1, 64, 64, 3]))]
        [8, 4, 2]
    """

    def __init__(self, model, **kwargs):
        super().__init__(**kwargs)
        levels = model.pyramid_level_inputs
        missing = [level for level in ("P3", "P4", "P5") if level not in levels]
        if missing:
            raise ValueError(f"the backbone has no level {', '.join(missing)}; got {list(levels)}")
        outputs = [model.get_layer(levels[level]).output for level in ("P3", "P4", "P5")]
        self._backbone_config = keras.saving.serialize_keras_object(model)
        self.model = keras.Model(model.inputs, outputs, name="model")

    def build(self, input_shape):
        self.built = True

    def call(self, images):
        return self.model(images, training=False)

    def compute_output_shape(self, input_shape):
        return [tuple(output.shape) for output in self.model.outputs]

    def get_config(self):
        return {**super().get_config(), "model": self._backbone_config}

    @classmethod
    def from_config(cls, config):
        model = keras.saving.deserialize_keras_object(config.pop("model"))
        return cls(model, **config)


class _StepMetrics:
    """Means over an epoch; no Keras object itself, so that models do not save it."""

    def __init__(self, loss_names):
        self._losses = {name: keras.metrics.Mean(name=name) for name in ("loss", *loss_names)}
        self._norm = keras.metrics.Mean(name="grad_norm")
        self.trackers = [*self._losses.values(), self._norm]

    def update(self, losses, norm=None, norm_weight=None):
        for name, tracker in self._losses.items():
            tracker.update_state(losses[name])
        results = {name: tracker.result() for name, tracker in self._losses.items()}
        if norm is None:
            return results
        self._norm.update_state(norm, sample_weight=norm_weight)
        return {**results, "grad_norm": self._norm.result()}


def check_same_convention(**parts):
    """Raises ValueError unless all parts, given by argument name, have the same `convention`."""
    conventions = {name: part.convention for name, part in parts.items()}
    if len(set(conventions.values())) > 1:
        raise ValueError(
            f"{' and '.join(parts)} must share one convention; got "
            f"{' and '.join(map(repr, conventions.values()))}"
        )


def level_sizes(outputs):
    """Height and width of each level of raw outputs, as ints where they are known.

    Args:
        outputs: what a detector's `call` returned.

    Returns:
        list of (height, width).
    """
    sizes = []
    for logits in outputs["classification"]:
        dynamic = tf.shape(logits)
        static = logits.shape
        sizes.append(tuple(dynamic[i] if static[i] is None else static[i] for i in (1, 2)))
    return sizes


def all_reduce_sum(tensors):
    """Sums each tensor of a list over all replicas; on one device returns them as they are."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def _build(layer, shape):
    if not layer.built:
        layer.build(shape)


def _nothing():
    return tf.constant(True)


def _effect(function):
    """A branch of `tf.cond` that is there for what it does."""

    def branch():
        function()
        return tf.constant(True)

    return branch
