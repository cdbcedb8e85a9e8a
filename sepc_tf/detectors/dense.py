"""Dense detectors: one prediction for each cell of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from sepc_tf.backbones.keras_cv import KerasCVFeatures
from sepc_tf.detectors.base import Detector
from sepc_tf.ops.boxes import rescale_boxes
from sepc_tf.ops.nms import NMS_KINDS, multiclass_nms


class DenseDetector(Detector):
    """A detector that predicts classes and boxes at every cell of a pyramid.

    `images -> backbone -> necks, one after the other -> towers -> head`. A subclass says what is
    learnt (`compute_losses`) and how raw outputs become scored boxes (`scored_boxes`).

    Args:
        backbone: model or layer from images to maps of falling size, the last one of stride 32
            (C5); or a KerasCV backbone, see `sepc_tf.backbones.KerasCVFeatures`.
        necks: one layer or several, from maps to a pyramid. The first takes the backbone's maps
            from C_`min_level` (its attribute) on. The finest level of the pyramid is the same one,
            unless a neck's `finest_output_level` says otherwise.
        towers: layer from a pyramid to `(cls_pyramid, box_pyramid)`.
        head: layer from these to raw outputs, with an attribute `num_classes`.
        convention: box arithmetic, "modern" or "mmdet1"; see `sepc_tf.ops.boxes`.
        score_threshold: detections have a score above it.
        nms: "hard" (each class by itself), "soft" or "class_agnostic"; see `multiclass_nms`.
        nms_iou: IoU above which a better box suppresses another; soft NMS has no use for it.
        soft_nms_sigma: of soft NMS.
        nms_pre: candidates per level that enter NMS.
        max_detections: detections per image.
        further_layers: what a subclass has besides; `part_inputs` must know them by name.
        name: of the model.

    Raises:
        ValueError: parts that do not fit together.

    Call arguments:
        images: `[B, H, W, 3]` float, as the backbone expects them; H and W multiples of 32.

    Returns:
        What the head returns: raw outputs, a dict of lists with one float32 map for each level.
    """

    def __init__(
        self,
        backbone: keras.layers.Layer,
        necks: keras.layers.Layer | Sequence[keras.layers.Layer],
        towers: keras.layers.Layer,
        head: keras.layers.Layer,
        *,
        convention: str = "modern",
        score_threshold: float = 0.05,
        nms: str = "hard",
        nms_iou: float = 0.5,
        soft_nms_sigma: float = 0.5,
        nms_pre: int = 1000,
        max_detections: int = 100,
        further_layers: Sequence[keras.layers.Layer] = (),
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=head.num_classes, name=name, **kwargs)
        if nms not in NMS_KINDS:
            raise ValueError(f"nms must be one of {NMS_KINDS}, got {nms!r}")
        if hasattr(backbone, "pyramid_level_inputs"):
            backbone = KerasCVFeatures(backbone, name="backbone")
        self.backbone = backbone
        self.necks = as_list(necks)
        self.towers = towers
        self.head = head
        self.further_layers = [*further_layers]
        self.convention = convention
        self.score_threshold = score_threshold
        self.nms = nms
        self.nms_iou = nms_iou
        self.soft_nms_sigma = soft_nms_sigma
        self.nms_pre = nms_pre
        self.max_detections = max_detections
        names = [neck.name for neck in self.necks]
        if not names or len({*names, "backbone", "towers", "head"}) < len(names) + 3:
            raise ValueError(
                "necks must be at least one layer, their names different from each other and from "
                f"backbone, towers and head; got {names}"
            )
        self.build(None)

    @classmethod
    def from_parts(
        cls,
        backbone: keras.layers.Layer,
        necks: keras.layers.Layer | Sequence[keras.layers.Layer],
        towers: keras.layers.Layer,
        num_classes: int,
        convention: str = "modern",
        options: Any = None,
        **settings: Any,
    ) -> DenseDetector:
        """Builds the detector with a head, anchors, matching and box code of its own.

        Args:
            backbone, necks, towers: as in the constructor.
            num_classes: number of object classes, without background.
            convention: "modern", or "mmdet1" for the authors' checkpoints.
            options: an instance of the detector's `Options`; by default the published ones.
            **settings: of the constructor: how outputs become detections, and `name`.

        Returns:
            A detector of this class.
        """
        raise NotImplementedError

    # ---------------------------------------------------------------- parts, forward

    @property
    def parts(self) -> dict[str, keras.layers.Layer]:
        necks = {neck.name: neck for neck in self.necks}
        parts = {"backbone": self.backbone, **necks, "towers": self.towers, "head": self.head}
        return {**parts, **{layer.name: layer for layer in self.further_layers}}

    def part_inputs(self, images_shape: tuple) -> dict[str, Any]:
        inputs = {"backbone": images_shape}
        shapes = [tuple(s) for s in self.backbone.compute_output_shape(images_shape)]
        shapes = backbone_maps(shapes, self.necks)
        for neck in self.necks:
            inputs[neck.name] = shapes
            shapes = [tuple(shape) for shape in neck.compute_output_shape(shapes)]
        inputs["towers"] = shapes
        inputs["head"] = self.towers.compute_output_shape(shapes)
        return inputs

    def build(self, input_shape: Any) -> None:
        """Creates all weights; sizes are dynamic, so `input_shape` is not needed."""
        for name, layer in self.parts.items():
            if not layer.built:
                layer.build(self.part_inputs((None, None, None, 3))[name])
        self.built = True

    def pyramid(self, images: tf.Tensor, training: bool | None = None) -> list[tf.Tensor]:
        """The maps that the towers get: list of `[B, H_l, W_l, C]`, finest first."""
        maps = backbone_maps(list(self.backbone(images, training=training)), self.necks)
        for neck in self.necks:
            maps = neck(maps, training=training)
        return maps

    def call(self, images, training=None):
        features = self.towers(self.pyramid(images, training), training=training)
        return self.head(features, training=training)

    # ---------------------------------------------------------------- learning

    def batch_losses(self, batch, training):
        return self.compute_losses(self(batch["images"], training=training), batch)

    def compute_losses(self, outputs: dict, batch: dict) -> dict[str, tf.Tensor]:
        """`batch_losses` from raw outputs.

        Args:
            outputs: what `call` returned.
            batch: as in `batch_losses`; `images` are not needed.

        Returns:
            dict from each of `loss_names` to a float32 scalar.
        """
        raise NotImplementedError

    # ---------------------------------------------------------------- inference

    def detect(self, images, image_sizes, original_sizes=None):
        return self.decode(self(images, training=False), image_sizes, original_sizes)

    def decode(
        self,
        outputs: dict,
        image_sizes: tf.Tensor,
        original_sizes: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Turns raw outputs into detections.

        The candidates of `scored_boxes`, rescaled to the original images where their sizes are
        given; non-maximum suppression; the `max_detections` best. Plain TensorFlow: works for any
        sizes and inside a SavedModel.

        Args:
            outputs: what `call` returned.
            image_sizes, original_sizes: as in `detect`.

        Returns:
            As `detect`.
        """
        boxes, scores = self.scored_boxes(outputs, image_sizes)
        return self.suppressed(boxes, scores, image_sizes, original_sizes)

    def suppressed(
        self,
        boxes: tf.Tensor,
        scores: tf.Tensor,
        image_sizes: tf.Tensor,
        original_sizes: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """The detections that non-maximum suppression leaves of candidates.

        Args:
            boxes: `[B, N, 4]` float32 xyxy in pixels of the network's input, or `[B, N, K, 4]` with
                one for each class.
            scores: `[B, N, K]` float32.
            image_sizes, original_sizes: as in `detect`.

        Returns:
            As `detect`.
        """
        if original_sizes is not None:
            # Before NMS, where mmdet1's widths with a last pixel depend on the scale.
            boxes = rescale_boxes(boxes, image_sizes, original_sizes, self.convention)
        return multiclass_nms(boxes, scores, **self.suppression)

    @property
    def suppression(self) -> dict[str, Any]:
        """The arguments of `multiclass_nms` besides boxes and scores."""
        return {
            "score_threshold": self.lowest_score,
            "iou_threshold": self.nms_iou,
            "max_detections": self.max_detections,
            "convention": self.convention,
            "kind": self.nms,
            "soft_sigma": self.soft_nms_sigma,
        }

    @property
    def lowest_score(self) -> float:
        """What the scores of `scored_boxes` must exceed to become detections."""
        return self.score_threshold

    def scored_boxes(self, outputs: dict, image_sizes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The candidates for non-maximum suppression.

        Args:
            outputs, image_sizes: as in `decode`.

        Returns:
            `[B, N, 4]` float32 xyxy boxes in pixels of the network's input, clipped to the image,
            and `[B, N, K]` float32 scores.
        """
        raise NotImplementedError

    def flatten_outputs(self, outputs: dict) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Raw outputs `classification` and `box` as rows, one for each prediction of a cell.

        Args:
            outputs: what `call` returned.

        Returns:
            list of `[B, H_l * W_l * A, K]` logits and list of `[B, H_l * W_l * A, 4]` box codes,
            both float32, rows in the order (row, column, prediction).
        """

        def flat(maps, width):
            return [tf.reshape(tf.cast(x, tf.float32), [tf.shape(x)[0], -1, width]) for x in maps]

        return flat(outputs["classification"], self.head.num_classes), flat(outputs["box"], 4)

    # ---------------------------------------------------------------- saving

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "backbone": serialize(self.backbone),
            "necks": [serialize(neck) for neck in self.necks],
            "towers": serialize(self.towers),
            "head": serialize(self.head),
            "convention": self.convention,
            "score_threshold": self.score_threshold,
            "nms": self.nms,
            "nms_iou": self.nms_iou,
            "soft_nms_sigma": self.soft_nms_sigma,
            "nms_pre": self.nms_pre,
            "max_detections": self.max_detections,
        }


def as_list(necks: Any) -> list[keras.layers.Layer]:
    """One layer or several as a list."""
    return [*necks] if isinstance(necks, list | tuple) else [necks]


def backbone_maps(maps: list, necks: list[keras.layers.Layer]) -> list:
    """Of a backbone's maps (or shapes) C.., ..., C5 those that the first neck takes."""
    count = 6 - necks[0].min_level
    if len(maps) < count:
        raise ValueError(
            f"neck {necks[0].name!r} takes C{necks[0].min_level} to C5, {count} maps; the backbone "
            f"gives {len(maps)}"
        )
    return maps[-count:]


def pyramid_strides(necks: list[keras.layers.Layer]) -> tuple[int, ...]:
    """Strides of the pyramid that necks make of a backbone's maps, in pixels, finest first."""
    finest = necks[0].min_level
    for neck in necks:
        finest = getattr(neck, "finest_output_level", finest)
    return tuple(2 ** (finest + level) for level in range(len(_pyramid_shapes(necks))))


def pyramid_channels(necks: list[keras.layers.Layer]) -> int:
    """Channels of the pyramid that necks make of a backbone's maps."""
    return tuple(_pyramid_shapes(necks)[0])[-1]


def _pyramid_shapes(necks):
    shapes = [(None, None, None, 1)] * (6 - necks[0].min_level)
    for neck in necks:
        shapes = neck.compute_output_shape(shapes)
    return shapes


def level_sizes(outputs: dict) -> list[tuple]:
    """Height and width of each level of raw outputs, as ints where they are known.

    Args:
        outputs: what a dense detector's `call` returned.

    Returns:
        list of (height, width).
    """
    sizes = []
    for logits in outputs["classification"]:
        dynamic = tf.shape(logits)
        static = logits.shape
        sizes.append(tuple(dynamic[i] if static[i] is None else static[i] for i in (1, 2)))
    return sizes
