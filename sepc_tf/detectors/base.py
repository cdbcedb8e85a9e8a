"""What every detector is: parts, a training step, detections, saving.

Nothing here knows of anchors, levels or stages; `sepc_tf.detectors.dense` is one family below it.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from sepc_tf import compat
from sepc_tf.ops.pixels import normalized_batch


class Detector(keras.Model):
    """A model that learns from images with boxes, and finds boxes in images.

    This class is the training engine. A subclass builds its layers in its constructor, such that
    all weights exist when it returns, and implements four hooks:

    - `parts`: its layers by name;
    - `part_inputs`: the shapes that each of them is called with;
    - `batch_losses`: the parts of the loss of a batch;
    - `detect`: boxes, scores and classes in a batch of images.

    Args:
        num_classes: number of object classes, without background.
        name: of the model.

    Attributes:
        num_classes: as given.
        loss_names: names of the parts of the loss.
        needs_masks: whether training batches must have the masks of the objects.
    """

    loss_names: tuple[str, ...] = ()
    needs_masks: bool = False

    def __init__(self, num_classes: int, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.num_classes = num_classes
        self.clip_norm = None
        self.weight_decay = 0.0
        self.bias_lr_mult = self.bias_decay_mult = 1.0
        self._step_metrics = _StepMetrics(self.loss_names)

    # ---------------------------------------------------------------- the contract

    @property
    def parts(self) -> dict[str, keras.layers.Layer]:
        """The layers by name, in the order of the data's way through them."""
        raise NotImplementedError

    def part_inputs(self, images_shape: tuple) -> dict[str, Any]:
        """The input shape, or structure of shapes, of each of `parts` for images of a shape."""
        raise NotImplementedError

    def batch_losses(self, batch: dict[str, tf.Tensor], training: bool) -> dict[str, tf.Tensor]:
        """The parts of the loss of one replica's share of the batch.

        Every part is already divided by a normaliser of the whole batch: summed over the replicas
        the parts are those of one device with all images.

        Args:
            batch: dict of `images` `[B, H, W, 3]` float32, normalised and padded; `image_sizes`
                `[B, 2]` int32, height and width without padding; `boxes` `[B, M, 4]` float32 xyxy
                in pixels of `images` and `labels` `[B, M]` int32, both padded with -1; where
                `needs_masks` also `bitmaps`, `frames` and `offsets`, see `sepc_tf.ops.bitmaps`.
            training: whether norms and the like are in training mode.

        Returns:
            dict from each of `loss_names` to a float32 scalar.
        """
        raise NotImplementedError

    def detect(
        self,
        images: tf.Tensor,
        image_sizes: tf.Tensor,
        original_sizes: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Detections of a batch of preprocessed images.

        Args:
            images: `[B, H, W, 3]` float32, normalised and padded.
            image_sizes: `[B, 2]` int32, height and width of the valid part of each image.
            original_sizes: `[B, 2]`, height and width of the valid parts in the pixels that boxes
                are wanted in, as in `sepc_tf.ops.boxes.rescale_boxes`; None where these are the
                pixels of `images`.

        Returns:
            dict of `boxes` `[B, D, 4]` float32 xyxy in pixels of the original images (or of
            `images`), `scores` `[B, D]` float32, `classes` `[B, D]` int32 (-1 past the end),
            `num_detections` `[B]` int32; best score first. A detector of masks also has `masks`
            `[B, D, S, S]` float32, probabilities at the centres of S x S equal parts of each box.
        """
        raise NotImplementedError

    # ---------------------------------------------------------------- training

    @tf.autograph.experimental.do_not_convert  # no control flow in Python: tracing takes half
    def train_step(self, batch):
        """One update: losses, gradients summed over replicas, clipped, decayed, applied.

        With g the gradient of the sum of the loss parts over the whole batch:
        `g <- g min(1, clip_norm / |g|)`, then `g <- g + weight_decay w` (as PyTorch's SGD), of
        biases `g <- bias_lr_mult (g + bias_decay_mult weight_decay w)`, then the optimizer. If the
        loss or a gradient is not finite the step leaves no trace in weights,
        statistics or optimizer (except that a loss scale is lowered).

        Args:
            batch: dict as in `batch_losses`; images may be uint8, see
                `sepc_tf.ops.pixels.normalized_batch`.

        Returns:
            dict of epoch means `loss`, each loss part, `grad_norm` (before clipping), and of
            `non_finite`, 1.0 if this very step was refused, else 0.0.
        """
        batch = normalized_batch(batch)
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
            losses = self.batch_losses(batch, training=True)
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
        gradients = [self._decayed(g, v) for g, v in zip(gradients, variables)]
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

    def _decayed(self, gradient, variable):
        is_bias = variable.name.rpartition("/")[2].partition(":")[0] == "bias"
        decay = self.weight_decay * (self.bias_decay_mult if is_bias else 1.0)
        if decay:
            gradient += decay * tf.cast(tf.convert_to_tensor(variable), gradient.dtype)
        if is_bias and self.bias_lr_mult != 1.0:
            gradient *= self.bias_lr_mult
        return gradient

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

    @tf.autograph.experimental.do_not_convert
    def test_step(self, batch):
        """Losses of a batch in inference mode; means over the batches, keys as in `train_step`."""
        losses = self.batch_losses(normalized_batch(batch), training=False)
        return self._step_metrics.update(self._sum_losses(losses))

    @tf.autograph.experimental.do_not_convert
    def predict_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Detections of a batch, boxes in pixels of its images; see `detect`."""
        return self.detect(normalized_batch(batch)["images"], batch["image_sizes"])

    # ---------------------------------------------------------------- compiling and saving

    @property
    def _default_save_signature(self):
        # Keras 3 would add a signature of its own to a SavedModel, with images of unknown rank.
        return None

    def compile(
        self,
        optimizer="sgd",
        *,
        clip_norm=None,
        weight_decay=0.0,
        bias_lr_mult=1.0,
        bias_decay_mult=1.0,
        jit_compile=False,
        **kwargs,
    ):
        """Sets how `fit` trains. The losses are the detector's own.

        Args:
            optimizer: Keras optimizer or its name. It must not clip by itself.
            clip_norm: largest global norm of the gradients, or None.
            weight_decay: L2 penalty as in PyTorch's SGD: `weight_decay * w` is added to the clipped
                gradient of every trainable weight. (Decoupled decay is the optimizer's own
                `weight_decay`.)
            bias_lr_mult: learning rate of biases over that of other weights, with SGD: their
                gradients are multiplied by it. Biases are those of convolutions and dense layers,
                not the beta of norms.
            bias_decay_mult: `weight_decay` of biases over that of other weights.
            jit_compile: compile the train step with XLA (one device or GPUs; static image sizes).
            **kwargs: `run_eagerly`, `steps_per_execution`.

        Raises:
            ValueError: losses or metrics are given, or the optimizer clips by itself.

        Example:
            >>> detector.compile(keras.optimizers.SGD(0.01, momentum=0.9), clip_norm=35.0,
            ...                  weight_decay=1e-4)
            >>> batches = training_pipeline(dataset, config).for_epoch(0)
            >>> history = detector.fit(batches, verbose=0)
            >>> np.isfinite(history.history["loss"]).all().item()
            True
        """
        unknown = set(kwargs) - {"run_eagerly", "steps_per_execution"}
        if unknown:
            raise ValueError(
                "compile takes optimizer, clip_norm, weight_decay, bias_lr_mult, bias_decay_mult, "
                "jit_compile, run_eagerly, steps_per_execution (the losses are the detector's "
                f"own); got {sorted(unknown)}"
            )
        super().compile(optimizer=optimizer, loss=None, jit_compile=jit_compile, **kwargs)
        for clipping in ("clipnorm", "clipvalue", "global_clipnorm"):
            if getattr(self.optimizer, clipping, None) is not None:
                raise ValueError(
                    f"the optimizer has {clipping}, which is wrong under several replicas; "
                    "use compile(clip_norm=...) instead"
                )
        self.clip_norm = clip_norm
        self.weight_decay = weight_decay
        self.bias_lr_mult = bias_lr_mult
        self.bias_decay_mult = bias_decay_mult
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
            "bias_lr_mult": self.bias_lr_mult,
            "bias_decay_mult": self.bias_decay_mult,
            "jit_compile": bool(self.jit_compile),
        }

    def compile_from_config(self, config):
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
        self.compile(**{**config, "optimizer": optimizer})

    @property
    def metrics(self):
        """The means over an epoch of the losses and the gradient norm."""
        return self._step_metrics.trackers

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Refused: Keras' own export knows neither the size of images nor what is around a model.

        Raises:
            TypeError: always; it names what to use.
        """
        raise TypeError(
            "a detector is exported with its preprocessing: use sepc_tf.export(run, directory) or "
            "the command sepc-tf export"
        )

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Detector:
        if "fpn" in config:
            raise ValueError(
                f"{cls.__name__}: this .keras file was written before version 0.2, when a detector "
                "had one fpn and not a list of necks; export its run directory again"
            )
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                if isinstance(value, dict | list)
                else value
                for name, value in config.items()
            }
        )


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


def all_reduce_sum(tensors):
    """Sums each tensor of a list over all replicas; on one device returns them as they are."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def _nothing():
    return tf.constant(True)


def _effect(function):
    """A branch of `tf.cond` that is there for what it does."""

    def branch():
        function()
        return tf.constant(True)

    return branch
