"""The second stage: what is learnt from proposals, and how its outputs become boxes."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.base import all_reduce_sum
from sepc_tf.detectors.two_stage.saved import SavedByParts
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.ops.boxes import clip_boxes, has_area
from sepc_tf.ops.coders import BoxCoder
from sepc_tf.ops.losses import smooth_l1_loss
from sepc_tf.ops.matching import IGNORED, MaxIoUMatcher, gather_matched
from sepc_tf.ops.sampling import RandomSampler


@keras.saving.register_keras_serializable(package="sepc_tf")
class BoxHead(keras.layers.Layer):
    """Two dense layers with ReLU, then one for the classes and one for the box of each class.

    Features are flattened channel by channel, as in the authors' code, whose weights fit then.

    Sublayers: `fc_0`, `fc_1`, ..., `label_logits`, `box_deltas`.

    Args:
        num_classes: number K of object classes, without background.
        units: of the dense layers.
        num_layers: how many of these.
        class_agnostic: one box for all classes.

    Call arguments:
        pooled: `[B, R, S, S, C]`, features of each box.

    Returns:
        dict of `classes` `[B, R, K + 1]` float32 logits, background first, and `boxes` float32 box
        codes, `[B, R, K + 1, 4]` (those of the background are never used) or `[B, R, 1, 4]`.

    Example:
        >>> BoxHead(num_classes=3, units=8)(tf.zeros([1, 5, 7, 7, 4]))["boxes"].shape
        TensorShape([1, 5, 4, 4])

    Source: Feature Pyramid Networks (arXiv 1612.03144), section 4.2.
    """

    def __init__(
        self,
        num_classes: int,
        units: int = 1024,
        num_layers: int = 2,
        class_agnostic: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.units = units
        self.num_layers = num_layers
        self.class_agnostic = class_agnostic
        self.layers = [
            self._dense(units, f"fc_{i}", keras.initializers.GlorotUniform())
            for i in range(num_layers)
        ]
        self.columns = 1 if class_agnostic else num_classes + 1
        normal = keras.initializers.RandomNormal
        self.label_logits = self._dense(num_classes + 1, "label_logits", normal(stddev=0.01))
        self.box_deltas = self._dense(4 * self.columns, "box_deltas", normal(stddev=0.001))

    def _dense(self, units, name, initializer):
        return keras.layers.Dense(
            units, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
        )

    def build(self, pooled_shape):
        _, _, height, width, channels = pooled_shape
        shape = (None, None, height * width * channels)
        for layer in self.layers:
            layer.build(shape)
            shape = (None, None, self.units)
        self.label_logits.build(shape)
        self.box_deltas.build(shape)
        self.built = True

    def call(self, pooled):
        shape, size = tf.shape(pooled), pooled.shape[2:].num_elements()
        x = tf.reshape(tf.transpose(pooled, [0, 1, 4, 2, 3]), [shape[0], shape[1], size])
        for layer in self.layers:
            x = tf.nn.relu(layer(x))
        boxes = tf.cast(self.box_deltas(x), tf.float32)
        return {
            "classes": tf.cast(self.label_logits(x), tf.float32),
            "boxes": tf.reshape(boxes, [shape[0], shape[1], self.columns, 4]),
        }

    def compute_output_shape(self, pooled_shape):
        batch, boxes = tuple(pooled_shape)[:2]
        return {
            "classes": (batch, boxes, self.num_classes + 1),
            "boxes": (batch, boxes, self.columns, 4),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "units": self.units,
            "num_layers": self.num_layers,
            "class_agnostic": self.class_agnostic,
        }


@keras.saving.register_keras_serializable(package="sepc_tf")
@dataclasses.dataclass(frozen=True)
class RoIStage(SavedByParts):
    """What one stage makes of boxes; Faster R-CNN has one, a cascade several.

    *Samples* are a dict of what is learnt from in a batch, S boxes of each image: `boxes`
    `[B, S, 4]`, `present` `[B, S]` bool, `matches` `[B, S]` int32 (of `sepc_tf.ops.matching`),
    `columns` `[B, S]` int32 (0 background, else class + 1), `codes` `[B, S, 4]`, the box code of
    the matched object (0 where there is none), and `own` `[B, S]` bool, which boxes are objects
    themselves. Positives come first.

    Args:
        pooler: from a pyramid and boxes to features.
        head: from features to classes and box codes.
        matcher: which object a box is matched to.
        sampler: which boxes are learnt from.
        coder: its convention is the stage's.
        smooth_l1_beta: where smooth L1 turns linear.
    """

    pooler: RoIAlign
    head: BoxHead
    matcher: MaxIoUMatcher
    sampler: RandomSampler
    coder: BoxCoder
    smooth_l1_beta: float = 1.0

    def candidates(
        self, boxes: tf.Tensor, present: tf.Tensor, batch: dict
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Boxes that may be learnt from: the objects, matched to themselves, then the given ones.

        Args:
            boxes, present: `[B, P, 4]` xyxy and `[B, P]` bool, proposals.
            batch: with `boxes` `[B, M, 4]` and `labels` `[B, M]`.

        Returns:
            `[B, M + P, 4]` boxes and `[B, M + P]` int32 matches.
        """
        objects = tf.cast(batch["boxes"], tf.float32)
        real = (batch["labels"] >= 0) & has_area(objects, self.coder.convention)
        matches = self.matcher(boxes, objects, real, present)
        own = tf.where(real, tf.range(tf.shape(objects)[1])[None], IGNORED)
        return tf.concat([objects, boxes], axis=1), tf.concat([own, matches], axis=1)

    def samples(
        self,
        boxes: tf.Tensor,
        matches: tf.Tensor,
        rows: tf.Tensor,
        present: tf.Tensor,
        batch: dict,
    ) -> dict[str, tf.Tensor]:
        """The samples; `boxes` and `matches` of `candidates`, `rows` and `present` of a sampler."""
        boxes, matches = (tf.gather(x, rows, axis=1, batch_dims=1) for x in (boxes, matches))
        matches = tf.where(present, matches, IGNORED)
        positive = matches >= 0
        classes = gather_matched(tf.cast(batch["labels"], tf.int32), matches)
        objects = gather_matched(tf.cast(batch["boxes"], tf.float32), matches)
        codes = self.coder.encode(boxes, objects)
        return {
            "boxes": tf.where(present[..., None], boxes, 0.0),
            "present": present,
            "matches": matches,
            "columns": tf.where(positive, classes + 1, 0),
            "codes": tf.where(positive[..., None], codes, 0.0),
            "own": rows < tf.shape(batch["labels"])[1],
        }

    def losses(self, outputs: dict, samples: dict) -> dict[str, tf.Tensor]:
        """`classification` and `box` of one replica's share of the batch.

        `classification = sum of softmax cross entropies / N`, `box = sum of smooth L1 of the codes
        of the positives, each of its class / N`, N = number of samples of the whole batch over all
        replicas, positives and background.
        """
        present, positive = samples["present"], samples["matches"] >= 0
        count = all_reduce_sum([tf.reduce_sum(tf.cast(present, tf.float32))])[0]
        count = tf.maximum(count, 1.0)
        entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=samples["columns"], logits=outputs["classes"]
        )
        codes = self.codes_of(outputs, samples["columns"])
        box = tf.reduce_sum(smooth_l1_loss(samples["codes"], codes, self.smooth_l1_beta), axis=2)
        return {
            "classification": tf.reduce_sum(tf.where(present, entropies, 0.0)) / count,
            "box": tf.reduce_sum(tf.where(positive, box, 0.0)) / count,
        }

    def codes_of(self, outputs: dict, columns: tf.Tensor) -> tf.Tensor:
        """The box codes `[B, R, 4]` of `[B, R]` columns (0 background, else class + 1)."""
        if self.head.class_agnostic:
            return outputs["boxes"][:, :, 0]
        return tf.gather(outputs["boxes"], columns, axis=2, batch_dims=2)

    # ---------------------------------------------------------------- boxes

    def refined(
        self, outputs: dict, boxes: tf.Tensor, columns: tf.Tensor, image_sizes: tf.Tensor
    ) -> tf.Tensor:
        """`[B, R, 4]` boxes, moved by the codes of a column each and clipped to the image.

        No gradient flows through them.
        """
        boxes = self.coder.decode(boxes, self.codes_of(outputs, columns))
        return tf.stop_gradient(clip_boxes(boxes, image_sizes, self.coder.convention))

    def scored_boxes(
        self, outputs: dict, boxes: tf.Tensor, present: tf.Tensor, image_sizes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The candidates for non-maximum suppression.

        Returns:
            `[B, R, Q, 4]` boxes clipped to the image, Q = K (or 1 where they are class-agnostic),
            and `[B, R, K]` scores, 0 where no box is.
        """
        scores = tf.nn.softmax(outputs["classes"])[..., 1:]
        codes = outputs["boxes"]
        codes = codes if self.head.class_agnostic else codes[:, :, 1:]
        boxes = self.coder.decode(boxes[:, :, None], codes)
        boxes = clip_boxes(boxes, image_sizes, self.coder.convention)
        return boxes, tf.where(present[..., None], scores, 0.0)
