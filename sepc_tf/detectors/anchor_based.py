"""Dense detectors whose predictions are relative to anchors."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.detectors.dense import DenseDetector, level_sizes
from sepc_tf.ops.anchors import AnchorGenerator
from sepc_tf.ops.boxes import clip_boxes, has_area
from sepc_tf.ops.coders import BoxCoder, TBLRCoder
from sepc_tf.ops.matching import EffectiveAreaMatcher, MaxIoUMatcher, gather_matched
from sepc_tf.ops.nms import top_candidates
from sepc_tf.settings import setting

# `ops` knows nothing of Keras; only saving needs these names.
for _cls in (AnchorGenerator, BoxCoder, TBLRCoder, MaxIoUMatcher, EffectiveAreaMatcher):
    keras.saving.register_keras_serializable(package="sepc_tf")(_cls)


@dataclasses.dataclass
class AnchorOptions:
    """Anchors of a cell, as in `sepc_tf.ops.anchors.AnchorGenerator`."""

    strides: list[int] | None = setting(None, at_least=1)  # null: those of the pyramid
    octave_base: float = setting(4.0, above=0)  # smallest square anchor, in strides
    scales_per_octave: int = setting(3, at_least=1)  # anchor sizes on a level
    scales: list[float] | None = setting(None, above=0)  # in place of the two above
    ratios: list[float] = setting([0.5, 1.0, 2.0], above=0)  # height / width

    def generator(self, strides: tuple[int, ...], convention: str) -> AnchorGenerator:
        """The `AnchorGenerator`, on a pyramid of these strides unless others are set."""
        return AnchorGenerator(
            strides=self.strides or strides,
            octave_base=self.octave_base,
            scales_per_octave=self.scales_per_octave,
            scales=self.scales,
            ratios=self.ratios,
            convention=convention,
        )


class AnchorDetector(DenseDetector):
    """A dense detector that classifies anchors and moves them onto objects.

    Args:
        backbone, necks, towers: see `DenseDetector`.
        head: `PredictionHead`.
        anchor_generator: `AnchorGenerator`, one stride for each level.
        coder: `BoxCoder` or `TBLRCoder`; its convention is the detector's.
        matcher: `MaxIoUMatcher` or `EffectiveAreaMatcher`; None for a detector that assigns
            objects in another way.
        size_divisor: what padded image sides are multiples of: anchors beyond an image's own
            padded size are not learnt from.
        **settings: further arguments of `DenseDetector`.

    Raises:
        ValueError: parts that do not fit together.

    Returns (from a call):
        dict of `classification`, list of `[B, H_l, W_l, A * K]` float32 logits (channel a * K + c),
        and `box`, list of `[B, H_l, W_l, A * 4]` float32.
    """

    loss_names = ("classification", "box")

    def __init__(
        self,
        backbone: keras.layers.Layer,
        necks: Any,
        towers: keras.layers.Layer,
        head: keras.layers.Layer,
        *,
        anchor_generator: AnchorGenerator,
        coder: BoxCoder | TBLRCoder,
        matcher: MaxIoUMatcher | EffectiveAreaMatcher | None = None,
        size_divisor: int = 32,
        **settings: Any,
    ) -> None:
        if head.num_anchors != anchor_generator.anchors_per_cell:
            raise ValueError(
                f"head.num_anchors ({head.num_anchors}) must equal the anchor generator's anchors "
                f"per cell ({anchor_generator.anchors_per_cell})"
            )
        given = {"anchor_generator": anchor_generator, "coder": coder, "matcher": matcher}
        check_same_convention(**{name: part for name, part in given.items() if part is not None})
        settings["convention"] = coder.convention
        super().__init__(backbone, necks, towers, head, **settings)
        self.anchor_generator = anchor_generator
        self.coder = coder
        self.matcher = matcher
        self.size_divisor = size_divisor
        levels = len(self.part_inputs((None, None, None, 3))["towers"])
        if levels != len(anchor_generator.strides):
            raise ValueError(
                "anchor_generator must have one stride for each pyramid level; got "
                f"{len(anchor_generator.strides)} strides and {levels} levels"
            )

    def anchors(self, outputs: dict) -> list[tf.Tensor]:
        """Anchors of each level of raw outputs: list of `[H_l * W_l * A, 4]` float32 xyxy."""
        return self.anchor_generator(level_sizes(outputs))

    def learnable_anchors(self, outputs: dict, image_sizes: tf.Tensor) -> tf.Tensor:
        """Which anchors are learnt from: `[B, N]` bool; here those of cells inside their image."""
        return self.anchor_generator.valid(level_sizes(outputs), image_sizes, self.size_divisor)

    def label_anchors(self, outputs: dict, batch: dict) -> dict[str, tf.Tensor]:
        """What each anchor should predict.

        Args:
            outputs, batch: as in `compute_losses`.

        Returns:
            dict, levels concatenated, N anchors: `matches` `[B, N]` int32 (index of a box,
            BACKGROUND or IGNORED of `sepc_tf.ops.matching`), `classes` `[B, N]` int32 (-1 where
            nothing is matched), `boxes` `[B, N, 4]` float32 xyxy, the matched box (the anchor
            itself where nothing is matched), and `codes` `[B, N, 4]` float32, its code.
        """
        anchors = tf.concat(self.anchors(outputs), axis=0)
        boxes = tf.cast(batch["boxes"], tf.float32)
        labels = tf.cast(batch["labels"], tf.int32)
        valid = self.learnable_anchors(outputs, batch["image_sizes"])
        present = (labels >= 0) & has_area(boxes, self.convention)
        matches = self.matcher(anchors, boxes, present, valid)
        matched = matches >= 0
        # Encoding an anchor as itself keeps the logarithm finite where nothing is matched.
        targets = tf.where(matched[..., None], gather_matched(boxes, matches), anchors)
        return {
            "matches": matches,
            "classes": tf.where(matched, gather_matched(labels, matches), -1),
            "boxes": targets,
            "codes": self.coder.encode(anchors, targets),
        }

    def scored_boxes(self, outputs, image_sizes):
        """Of each level the `nms_pre` best anchors by their highest class score, decoded."""
        logits, codes = self.flatten_outputs(outputs)
        level_boxes, level_scores = [], []
        for anchors, level_logits, level_codes in zip(self.anchors(outputs), logits, codes):
            scores = tf.sigmoid(level_logits)
            rows = top_candidates(scores, self.nms_pre)
            codes_of_rows = tf.gather(level_codes, rows, axis=1, batch_dims=1)
            level_boxes.append(self.coder.decode(tf.gather(anchors, rows), codes_of_rows))
            level_scores.append(tf.gather(scores, rows, axis=1, batch_dims=1))
        boxes = clip_boxes(tf.concat(level_boxes, axis=1), image_sizes, self.convention)
        return boxes, tf.concat(level_scores, axis=1)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        config = super().get_config()
        del config["convention"]  # the coder's
        return {
            **config,
            "anchor_generator": serialize(self.anchor_generator),
            "coder": serialize(self.coder),
            **({"matcher": serialize(self.matcher)} if self.matcher else {}),
            "size_divisor": self.size_divisor,
        }


def check_same_convention(**parts: Any) -> None:
    """Raises ValueError unless all parts, given by argument name, have the same `convention`."""
    conventions = {name: part.convention for name, part in parts.items()}
    if len(set(conventions.values())) > 1:
        raise ValueError(
            f"{' and '.join(parts)} must share one convention; got "
            f"{' and '.join(map(repr, conventions.values()))}"
        )
