"""Everything behind the proposals: one stage or several, with masks or without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import tensorflow as tf

from sepc_tf.detectors.two_stage.mask_head import MaskBranch
from sepc_tf.detectors.two_stage.roi_heads import RoIStage
from sepc_tf.detectors.two_stage.saved import SavedByParts
from sepc_tf.detectors.two_stage.semantic_head import SemanticBranch
from sepc_tf.ops.sampling import RandomSampler

# (sampler, matches, number of the draw) -> rows and present, as of a `RandomSampler`
Sample = Callable[[RandomSampler, tf.Tensor, int], tuple[tf.Tensor, tf.Tensor]]


@keras.saving.register_keras_serializable(package="sepc_tf")
@dataclasses.dataclass(frozen=True)
class RoIPart(SavedByParts):
    """The second part of a two-stage detector.

    - One stage: Fast R-CNN's head. Its positives also learn masks if there is a mask branch.
    - Several: a cascade. A stage learns from samples of the boxes that the stage before moved, the
      objects added to them; at test time it moves those boxes on. Scores are the softmax of the
      mean logits of all stages, boxes those of the last one.
    - With a mask branch a cascade is a hybrid task cascade: a stage's mask head learns from new
      samples, of the boxes that the same stage has moved (interleaved execution), and its features
      go on to the mask heads behind it.

    A *round* is what one stage did in a training step, a dict of tensors: `matches`, `samples` and
    `outputs` of the stage, `boxes` `[B, S, 4]` and `present` `[B, S]`, the moved samples without
    the objects; with masks `mask_matches`, `mask_samples` and `masks`, logits of their class.

    Args:
        stages: one or several.
        loss_weights: a factor of the losses of each stage.
        masks: None: boxes only.
        semantic: adds features of a semantic branch to those of every box; None: there is none.
    """

    stages: list[RoIStage]
    loss_weights: list[float]
    masks: MaskBranch | None = None
    semantic: SemanticBranch | None = None

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """All that have weights."""
        layers = [stage.head for stage in self.stages]
        layers += self.masks.heads if self.masks else []
        return [*layers, self.semantic.head] if self.semantic else layers

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses: of several stages each with the number of its stage."""
        kinds = ("classification", "box", *(("mask",) if self.masks else ()))
        names = [self._named(kind, i) for i in range(len(self.stages)) for kind in kinds]
        return (*names, *(("semantic",) if self.semantic else ()))

    def _named(self, kind, stage):
        return kind if len(self.stages) == 1 else f"{kind}_{stage + 1}"

    # ---------------------------------------------------------------- forward

    def semantic_outputs(self, pyramid: list) -> dict | None:
        """What the semantic head returns, if there is one."""
        return self.semantic.head(pyramid) if self.semantic else None

    def outputs(
        self,
        stage: int,
        pyramid: list,
        semantic: dict | None,
        boxes: tf.Tensor,
        present: tf.Tensor,
    ) -> dict:
        """What the box head of a stage makes of boxes.

        Args:
            stage: its number.
            pyramid: the maps behind the necks.
            semantic: of `semantic_outputs`.
            boxes, present: `[B, R, 4]` xyxy, and `[B, R]` bool, which are real.
        """
        part = self.stages[stage]
        return part.head(self._pooled(part.pooler, pyramid, semantic, boxes, present))

    def mask_features(
        self, pyramid: list, semantic: dict | None, boxes: tf.Tensor, present: tf.Tensor
    ) -> tf.Tensor:
        """`[B, R, S, S, C]`, what the mask heads see of boxes; arguments as in `outputs`."""
        return self._pooled(self.masks.pooler, pyramid, semantic, boxes, present)

    def _pooled(self, pooler, pyramid, semantic, boxes, present):
        pooled = pooler(pyramid, boxes, present)
        if semantic is None:
            return pooled
        return pooled + self.semantic.pooled(semantic, boxes, present, pooler.size)

    # ---------------------------------------------------------------- learning

    def rounds(
        self,
        pyramid: list,
        semantic: dict | None,
        boxes: tf.Tensor,
        present: tf.Tensor,
        batch: dict,
        sample: Sample,
    ) -> list[dict]:
        """What the stages do with proposals in a training step: a round of each.

        Args:
            pyramid, semantic: as in `outputs`.
            boxes, present: `[B, P, 4]` and `[B, P]`, the proposals.
            batch: as in `Detector.batch_losses`; with masks as in `MaskBranch`.
            sample: draws what is learnt from.
        """
        rounds = []
        for i, stage in enumerate(self.stages):
            boxes, matches = stage.candidates(boxes, present, batch)
            drawn = sample(stage.sampler, matches, 2 * i)
            samples = stage.samples(boxes, matches, *drawn, batch)
            outputs = self.outputs(i, pyramid, semantic, samples["boxes"], samples["present"])
            boxes = stage.refined(
                outputs, samples["boxes"], samples["columns"], batch["image_sizes"]
            )
            present = samples["present"] & ~samples["own"]
            boxes = tf.where(present[..., None], boxes, 0.0)
            done = {"matches": matches, "samples": samples, "outputs": outputs}
            done |= {"boxes": boxes, "present": present}
            if self.masks:
                if len(self.stages) > 1:
                    candidates, matches = stage.candidates(boxes, present, batch)
                    drawn = sample(stage.sampler, matches, 2 * i + 1)
                    samples = stage.samples(candidates, matches, *drawn, batch)
                positives = {
                    name: x[:, : stage.sampler.most_positives] for name, x in samples.items()
                }
                here = positives["matches"] >= 0
                pooled = self.mask_features(pyramid, semantic, positives["boxes"], here)
                logits = self.masks.logits(pooled, positives["columns"], i + 1)[-1]
                done |= {"mask_matches": matches, "mask_samples": positives, "masks": logits}
            rounds.append(done)
        return rounds

    def losses(
        self, rounds: list[dict], semantic: dict | None, batch: dict
    ) -> dict[str, tf.Tensor]:
        """The losses named in `loss_names`, of one replica's share of the batch."""
        losses = {}
        for i, (stage, weight, done) in enumerate(zip(self.stages, self.loss_weights, rounds)):
            own = stage.losses(done["outputs"], done["samples"])
            if self.masks:
                own["mask"] = self.masks.loss(done["masks"], done["mask_samples"], batch)
            losses |= {self._named(kind, i): weight * loss for kind, loss in own.items()}
        if self.semantic:
            losses["semantic"] = self.semantic.loss(semantic, batch)
        return losses

    # ---------------------------------------------------------------- inference

    def steps(
        self,
        pyramid: list,
        semantic: dict | None,
        boxes: tf.Tensor,
        present: tf.Tensor,
        image_sizes: tf.Tensor,
    ) -> list[dict]:
        """Boxes on their way through the stages: of each the outputs, and `rois`, what it was
        given; arguments as in `outputs`."""
        steps = []
        for i in range(len(self.stages)):
            if steps:
                columns = tf.argmax(steps[-1]["classes"], axis=-1, output_type=tf.int32)
                boxes = self.stages[i - 1].refined(steps[-1], boxes, columns, image_sizes)
                boxes = tf.where(present[..., None], boxes, 0.0)
            steps.append({**self.outputs(i, pyramid, semantic, boxes, present), "rois": boxes})
        return steps

    def scored_boxes(
        self, steps: list[dict], present: tf.Tensor, image_sizes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The candidates for non-maximum suppression, see `RoIStage.scored_boxes`.

        Args:
            steps: of `steps`.
            present: `[B, R]` bool, which boxes are real.
            image_sizes: `[B, 2]` height, width.
        """
        logits = tf.add_n([step["classes"] for step in steps]) / len(steps)
        outputs = {**steps[-1], "classes": logits}
        return self.stages[-1].scored_boxes(outputs, steps[-1]["rois"], present, image_sizes)
