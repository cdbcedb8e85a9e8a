"""The mask branch: from features of boxes to the mask of the object in each, and its loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.base import all_reduce_sum
from sepc_tf.detectors.two_stage.saved import SavedByParts
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.bitmaps import NO_MASK
from sepc_tf.ops.mask_targets import mask_targets
from sepc_tf.ops.matching import gather_matched


@keras.saving.register_keras_serializable(package="sepc_tf")
class MaskHead(keras.layers.Layer):
    """Convolutions with ReLU, a transposed one that doubles the size, and one logit for each class.

    With `flow` the features of the head of the stage before go through a 1x1 convolution with ReLU
    and are added to the input (the interleaved information flow of a hybrid task cascade).

    Sublayers: `flow_conv` with `flow`, `conv_0`, `conv_1`, ..., `upsample`, `mask_logits`.

    Args:
        num_classes: number K of object classes, without background.
        filters: channels.
        num_convs: 3x3 convolutions.
        flow: whether features of another head come in.

    Call arguments:
        inputs: `[B, R, S, S, C]`, features of each box; with `flow` a pair of these and of the
            other head's features `[B, R, S, S, filters]`.
        columns: `[B, R]` int32, the one logit of each box that is wanted (class + 1); None: all.

    Returns:
        features `[B, R, S, S, filters]` before the upsampling, and float32 logits
        `[B, R, 2 S, 2 S]` of `columns`, or `[B, R, 2 S, 2 S, K + 1]` (0 is never used).

    Example:
        >>> features, logits = MaskHead(num_classes=3, filters=4)(tf.zeros([1, 5, 14, 14, 8]))
        >>> logits.shape
        TensorShape([1, 5, 28, 28, 4])

    Source: Mask R-CNN (arXiv 1703.06870), figure 4; the flow: HTC (arXiv 1901.07518), section 3.1.
    """

    def __init__(
        self,
        num_classes: int,
        filters: int = 256,
        num_convs: int = 4,
        flow: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.filters = filters
        self.num_convs = num_convs
        self.flow = flow
        dtype = self.dtype_policy
        if flow:
            self.flow_conv = SymmetricConv2D(filters, 1, dtype=dtype, name="flow_conv")
        self.convs = [
            SymmetricConv2D(filters, 3, dtype=dtype, name=f"conv_{i}") for i in range(num_convs)
        ]
        self.upsample = keras.layers.Conv2DTranspose(
            filters, 2, strides=2, kernel_initializer="he_normal", dtype=dtype, name="upsample"
        )
        self.mask_logits = SymmetricConv2D(
            num_classes + 1,
            1,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            dtype=dtype,
            name="mask_logits",
        )

    def build(self, input_shape):
        pooled_shape = tuple(input_shape[0] if self.flow else input_shape)
        shape = (None, *pooled_shape[2:])
        if self.flow:
            self.flow_conv.build((*shape[:-1], self.filters))
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:-1], self.filters)
        self.upsample.build(shape)
        self.mask_logits.build(shape)
        self.built = True

    def call(self, inputs, columns=None):
        pooled, before = inputs if self.flow else (inputs, None)
        count = [tf.shape(pooled)[i] for i in range(2)]
        x = _as_maps(pooled)
        if self.flow:
            x += tf.nn.relu(self.flow_conv(_as_maps(before)))
        for conv in self.convs:
            x = tf.nn.relu(conv(x))
        features = tf.reshape(x, [*count, *x.shape[1:]])
        x = tf.nn.relu(self.upsample(x))
        if columns is None:
            logits = self.mask_logits(x)
        else:
            # Of 81 logits one is wanted: its own column of the kernel on every box.
            columns = tf.reshape(columns, [-1])
            kernel, bias = (
                tf.cast(tf.convert_to_tensor(v), x.dtype)
                for v in (self.mask_logits.kernel, self.mask_logits.bias)
            )
            kernel = tf.gather(tf.transpose(kernel[0, 0]), columns)
            logits = tf.einsum("nhwc,nc->nhw", x, kernel)
            logits += tf.gather(bias, columns)[:, None, None]
        return features, tf.cast(tf.reshape(logits, [*count, *logits.shape[1:]]), tf.float32)

    def compute_output_shape(self, input_shape):
        batch, boxes, height, width, _ = tuple(input_shape[0] if self.flow else input_shape)
        features = (batch, boxes, height, width, self.filters)
        return features, (batch, boxes, 2 * height, 2 * width, self.num_classes + 1)

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "filters": self.filters,
            "num_convs": self.num_convs,
            "flow": self.flow,
        }


def _as_maps(pooled):
    """`[B, R, S, S, C]` -> `[B * R, S, S, C]`."""
    return tf.reshape(pooled, [-1, *pooled.shape[2:]])


@keras.saving.register_keras_serializable(package="sepc_tf")
@dataclasses.dataclass(frozen=True)
class MaskBranch(SavedByParts):
    """What makes masks of boxes, and learns it; one head, or one for each stage of a cascade.

    Args:
        pooler: from a pyramid and boxes to features.
        heads: those behind the first one have `flow`.
        convention: "modern" or "mmdet1", of the targets; see `mask_targets`.
    """

    pooler: RoIAlign
    heads: list[MaskHead]
    convention: str = "modern"

    def features_and_logits(
        self, pooled: tf.Tensor, columns: tf.Tensor | None, stages: int
    ) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """What each of the first `stages` heads returns; arguments as of a `MaskHead`."""
        outputs = [self.heads[0](pooled, columns=columns)]
        for head in self.heads[1:stages]:
            outputs.append(head((pooled, outputs[-1][0]), columns=columns))
        return outputs

    def logits(self, pooled: tf.Tensor, columns: tf.Tensor | None, stages: int) -> list[tf.Tensor]:
        """The logits alone of `features_and_logits`."""
        return [logits for _, logits in self.features_and_logits(pooled, columns, stages)]

    def probabilities(self, pooled: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """`[B, R, 2 S, 2 S]`, the mean over the heads."""
        outputs = self.logits(pooled, columns, len(self.heads))
        return tf.add_n([tf.sigmoid(logits) for logits in outputs]) / len(outputs)

    def targets(self, samples: dict, batch: dict) -> tf.Tensor:
        """`[B, S, size, size]` float32, 0 and 1; those of what is no positive mean nothing.

        Args:
            samples: see `RoIStage`.
            batch: with `bitmaps`, `frames` and `offsets`, see `sepc_tf.ops.bitmaps`.
        """
        return mask_targets(
            *(batch[name] for name in ("bitmaps", "frames", "offsets")),
            tf.maximum(samples["matches"], 0),
            samples["boxes"],
            batch["image_sizes"],
            2 * self.pooler.size,
            self.convention,
        )

    def loss(self, logits: tf.Tensor, samples: dict, batch: dict) -> tf.Tensor:
        """Mean binary cross entropy of the pixels, of one replica's share of the batch.

        The mean is over the positives of the whole batch over all replicas that have a mask.

        Args:
            logits: `[B, S, size, size]`, of the class of each sample.
            samples, batch: as in `targets`.
        """
        given = gather_matched(batch["offsets"], samples["matches"]) != NO_MASK
        learnt = (samples["matches"] >= 0) & given
        count = all_reduce_sum([tf.reduce_sum(tf.cast(learnt, tf.float32))])[0]
        entropies = tf.nn.sigmoid_cross_entropy_with_logits(
            labels=self.targets(samples, batch), logits=logits
        )
        means = tf.reduce_mean(entropies, axis=(2, 3))
        return tf.reduce_sum(tf.where(learnt, means, 0.0)) / tf.maximum(count, 1.0)
