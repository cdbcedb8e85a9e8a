"""Family of cases: whole two-stage detectors, in training and at test time."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from sepc_tf import compat
from sepc_tf.checkpoints import import_state_dict, mmdet_names, named_variables
from sepc_tf.config import BackboneConfig, DetectorConfig, HeadConfig
from sepc_tf.detectors.two_stage.cascade_rcnn import CascadeRCNNOptions
from sepc_tf.detectors.two_stage.faster_rcnn import FasterRCNN, FasterRCNNOptions
from sepc_tf.detectors.two_stage.htc import HTCOptions, SemanticOptions
from sepc_tf.detectors.two_stage.mask_rcnn import MaskOptions, MaskRCNNOptions
from sepc_tf.parity.comparing import NETWORK_TOLERANCE, Comparison, relative_error
from sepc_tf.parity.fusion import neck_config
from sepc_tf.parity.golden import level_inputs, nchw, nhwc
from sepc_tf.parity.kinks import DoubtfulGradients, compare_doubtful_gradients, recorded_relus
from sepc_tf.parity.masks import compare_masks, padded_masks, semantic_map
from sepc_tf.parity.networks import backbone_config
from sepc_tf.parity.two_stage import (
    behind_padding,
    compare_accuracy,
    compare_detections,
    compare_samples,
    compare_sums,
    given_samples,
    images_of,
    in_their_order,
    padded,
    padded_boxes,
    proposal_options,
    rpn_options,
    their_codes,
)
from sepc_tf.zoo import build_detector

TYPES = {"FasterRCNN": "faster_rcnn", "MaskRCNN": "mask_rcnn", "HybridTaskCascade": "htc"}


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
    model = config.get("model")
    if not isinstance(model, dict) or model.get("type") not in TYPES:
        return None
    if "backbone" not in model:
        return check_cascade, NETWORK_TOLERANCE
    return (check_step if "train_cfg" in config else check_test), NETWORK_TOLERANCE


# ---------------------------------------------------------------- the detector


def detector_of(case) -> FasterRCNN:
    """The detector of the case without its weights, tiny in front of the RoI part if need be."""
    model, train = case.config["model"], case.config.get("train_cfg", {})
    test = case.config.get("test_cfg", {})
    filters = _listed(model["bbox_head"])[0]["in_channels"]
    config = DetectorConfig(
        type=TYPES[model["type"]],
        convention="mmdet1",
        head=HeadConfig(filters=filters),
        options=options_of(model, train),
    )
    if "backbone" in model:
        config.backbone = backbone_config(model["backbone"])
        config.necks = [neck_config(model["neck"])]
    else:
        config.backbone = BackboneConfig(depth=18, width=8)
        config.necks = [{"type": "fpn", "min_level": 2, "extra_levels": "pool"}]
    params = case.params()
    stacked = {key.split(".")[3] for key in params if key.startswith("neck.1.Pconvs.")}
    if stacked:
        normalization = "integrated" if any(".bn." in k for k in params if "Pconvs" in k) else None
        config.necks.append(
            {"type": "pconv", "num_convs": len(stacked), "normalization": normalization}
        )
    if test:
        rcnn = test.get("rcnn", test)  # a cascade by itself has no proposals
        config.score_threshold = rcnn["score_thr"]
        config.nms_iou = rcnn["nms"]["iou_thr"]
        config.max_detections = rcnn["max_per_img"]
        if "rpn" in test:
            config.options.test_proposals = proposal_options(test["rpn"])
    return build_detector(config, _listed(model["bbox_head"])[0]["num_classes"] - 1)


def _listed(settings):
    """Settings of one stage or of several, as a list."""
    return settings if isinstance(settings, list) else [settings]


def options_of(model: dict, train: dict) -> FasterRCNNOptions | CascadeRCNNOptions:
    """The options of an mmdetection `model` and, in training, its `train_cfg`."""
    heads, stages = _listed(model["bbox_head"]), _listed(train.get("rcnn", []))
    head = heads[0]
    common = {
        "units": head["fc_out_channels"],
        "pooled_size": head["roi_feat_size"],
        "class_agnostic": head["reg_class_agnostic"],
        "smooth_l1_beta": head["loss_bbox"]["beta"],
    }
    if "rpn_head" in model:
        common["rpn"] = rpn_options(model["rpn_head"], train.get("rpn", {}).get("assigner"))
    if stages:
        sampler = stages[0]["sampler"]
        common |= {"sampled": sampler["num"], "positive_fraction": sampler["pos_fraction"]}
    if "mask_head" in model:
        mask = _listed(model["mask_head"])[0]
        size = model["mask_roi_extractor"]["roi_layer"]["out_size"]
        common["mask"] = MaskOptions(size, mask["conv_out_channels"], mask["num_convs"])
    if len(heads) == 1:
        common["box_stds"] = head["target_stds"]
        if stages:
            assigner = stages[0]["assigner"]
            common["positive_iou"] = assigner["pos_iou_thr"]
            common["negative_iou"] = assigner["neg_iou_thr"]
            common["claim_iou"] = assigner["min_pos_iou"]
        return (MaskRCNNOptions if "mask" in common else FasterRCNNOptions)(**common)
    common["stage_stds"] = [head["target_stds"] for head in heads]
    if stages:
        common["stage_ious"] = [stage["assigner"]["pos_iou_thr"] for stage in stages]
        common["stage_weights"] = train["stage_loss_weights"]
    semantic = model.get("semantic_head")
    common["semantic"] = SemanticOptions(enabled=bool(semantic))
    if semantic:
        common["semantic"] = SemanticOptions(
            True, semantic["num_classes"], semantic["num_convs"], semantic["loss_weight"]
        )
    return HTCOptions(**common)


# ---------------------------------------------------------------- training


def training_batch(case) -> dict:
    """Objects, masks and semantic map of the case, as a batch."""
    sizes = [meta["img_shape"][:2] for meta in case.config["img_metas"]]
    batch = {**padded_boxes(case), **padded_masks(case), "image_sizes": tf.constant(sizes)}
    if "in.gt_semantic_seg" in case.data:
        batch["semantic"] = semantic_map(case)
    return batch


def given_proposals(case):
    """`[B, P, 4]` boxes and `[B, P]` bool, which are real."""
    boxes, present = padded([case.data[f"in.proposals.{i}"][:, :4] for i in images_of(case)])
    return tf.constant(boxes), tf.constant(present)


class GivenSamples:
    """Draws what the case gives; `sample` of `RoIPart.rounds`."""

    def __init__(self, case, stages: int):
        prefixes = ["rcnn_"]
        if stages > 1:
            prefixes = [f"s{i}.{kind}_" for i in range(stages) for kind in ("box", "mask")]
        self.given = [given_samples(case, prefix) for prefix in prefixes]

    def __call__(self, sampler, matches, draw):
        rows, present = self.given[draw]
        return behind_padding(matches, rows), tf.constant(present)


def all_mask_logits(roi, pyramid, semantic, rounds: list[dict]) -> list[tf.Tensor]:
    """Of each round the mask logits of all classes, `[B, S, 28, 28, K + 1]`."""
    logits = []
    for i, done in enumerate(rounds):
        samples = done["mask_samples"]
        here = samples["matches"] >= 0
        pooled = roi.mask_features(pyramid, semantic, samples["boxes"], here)
        logits.append(roi.masks.logits(pooled, None, i + 1)[-1])
    return logits


def compare_rounds(case, comparison, detector, rounds, mask_logits, proposals_present, batch):
    """Assignments, samples, outputs and masks of every stage."""
    several = len(rounds) > 1
    most = batch["boxes"].shape[1]
    present = proposals_present.numpy()
    for i, done in enumerate(rounds):
        prefix = f"out.s{i}." if several else "out."
        outputs, samples = done["outputs"], done["samples"]
        here = samples["present"].numpy()
        moved = done["present"].numpy()
        for image in images_of(case):
            own = done["matches"].numpy()[image, most:][present[image]]
            key = f"{prefix}box_gt_inds.{image}" if several else f"out.rcnn_gt_inds.{image}"
            comparison.equal(key, their_codes(own))
            if several:
                own = done["mask_matches"].numpy()[image, most:][moved[image]]
                comparison.equal(f"{prefix}mask_gt_inds.{image}", their_codes(own))
                refined = done["boxes"].numpy()[image][moved[image]]
                comparison.output(f"{prefix}refined.{image}", refined)
        logits, boxes = (outputs[name].numpy()[here] for name in ("classes", "boxes"))
        comparison.output(f"{prefix}cls_score", logits)
        comparison.output(f"{prefix}bbox_pred", boxes.reshape(len(boxes), -1))
        compare_samples(case, comparison, samples, prefix)
        compare_accuracy(comparison, logits, samples["columns"].numpy()[here], prefix)
        if detector.roi.masks:
            taken = done["mask_samples"]
            here = taken["matches"].numpy() >= 0
            targets = detector.roi.masks.targets(taken, batch).numpy()[here]
            comparison.equal(f"{prefix}mask_targets", targets)
            comparison.output(f"{prefix}mask_pred", nchw(mask_logits[i].numpy()[here]))
        present = moved


def compare_roi_losses(case, comparison, losses: dict):
    """The losses of the stages, and that of the semantic branch."""
    names = {"classification": "loss_cls", "box": "loss_bbox", "mask": "loss_mask"}
    for name, loss in losses.items():
        kind, _, stage = name.partition("_")
        if name == "semantic":
            comparison.output("out.loss_semantic_seg", loss)
        elif kind in names:
            prefix = f"out.s{int(stage) - 1}." if stage else "out."
            key = f"{prefix}{names[kind]}"
            comparison.output(key, np.reshape(loss, case.output_specs[key]["shape"]))


class Step:
    """A training step with the proposals and samples that the case gives.

    It is of the whole detector from images, or of its RoI part from a pyramid (`maps` then), where
    the case has no backbone.

    Args:
        case: as in `check_case`.
        dtype: "float32" or "float64".

    Attributes:
        detector: with the case's weights.
        names: dict of path -> (the authors' name, layout) of its variables.
        variables: dict of the golden key of a gradient -> variable.
        axes: dict of that key -> the permutation from our layout to the authors'.
        batch, proposals, present: what is learnt from.
    """

    def __init__(self, case, dtype: str = "float32") -> None:
        before = keras.mixed_precision.global_policy()
        keras.mixed_precision.set_global_policy(dtype)
        try:
            self.detector = detector_of(case)
        finally:
            keras.mixed_precision.set_global_policy(before)
        self.whole = "backbone" in case.config["model"]
        self.layers = self.detector if self.whole else RoILayers(self.detector.roi.layers)
        import_state_dict(self.layers, case.params())
        self.names = mmdet_names(self.layers)
        self.variables, self.axes = {}, {}
        if self.whole:
            self.images = tf.cast(nhwc(case.inputs()[f"{case.name}.img"]), dtype)
            self.rpn_samples = given_samples(case, "rpn_")
        else:
            for i, level in enumerate(level_inputs(case, "x")):
                self.variables[f"out.grad_x.{i}"] = tf.Variable(tf.cast(level, dtype))
                self.axes[f"out.grad_x.{i}"] = (0, 3, 1, 2)
            self.maps = [*self.variables.values()]
        for path, variable in named_variables(self.layers).items():
            if variable.trainable:
                name, layout = self.names[path]
                self.variables[f"out.grad.{name}"] = compat.variable_value(variable)
                axes = {"hwio": (3, 2, 0, 1), "io": (1, 0), "same": (0,)}[layout]
                self.axes[f"out.grad.{name}"] = axes
        self.batch = training_batch(case)
        self.proposals, self.present = given_proposals(case)
        self.sample = GivenSamples(case, len(self.detector.roi.stages))

    def forward(self) -> dict:
        """What is compared, with the parts of the loss and `total`, their sum."""
        detector, roi, batch = self.detector, self.detector.roi, self.batch
        results, losses = {}, {}
        if self.whole:
            pyramid, outputs = detector.pyramid_and_outputs(self.images, training=True)
            targets = detector.label_anchors(outputs, batch)
            losses = detector.losses_of_sample(outputs, targets, *self.rpn_samples)
            results["outputs"] = outputs
            results["anchor_matches"] = targets["matches"]
            results["inside"] = detector.learnable_anchors(outputs, batch["image_sizes"])
        else:
            pyramid = [tf.convert_to_tensor(level) for level in self.maps]
        semantic = roi.semantic_outputs(pyramid)
        rounds = roi.rounds(pyramid, semantic, self.proposals, self.present, batch, self.sample)
        losses |= roi.losses(rounds, semantic, batch)
        total = tf.add_n([*losses.values()])
        return results | {
            "pyramid": pyramid,
            "semantic": semantic,
            "rounds": rounds,
            "losses": losses,
            "total": total,
        }


def run_step(case, comparison: Comparison) -> tuple[Step, dict]:
    """The step, its results; all that a step of a detector and of an RoI part share is compared."""
    step = Step(case)
    roi = step.detector.roi

    @tf.function(autograph=False)
    def run():
        with tf.GradientTape() as tape, recorded_relus() as relus:
            results = step.forward()
        gradients = tape.gradient(results["total"], step.variables)
        parts = [results[name] for name in ("pyramid", "semantic", "rounds")]
        masks = all_mask_logits(roi, *parts) if roi.masks else None
        return results, masks, gradients, [x for x, _ in relus]

    results, masks, gradients, relu_inputs = run()
    compare_rounds(
        case, comparison, step.detector, results["rounds"], masks, step.present, step.batch
    )
    compare_roi_losses(case, comparison, results["losses"])
    comparison.output("out.loss", results["total"])

    def in_float64():
        exact = Step(case, "float64")
        return DoubtfulGradients(
            exact.variables, exact.axes, lambda: exact.forward()["total"], relu_inputs
        )

    gradients = {
        key: np.transpose(tf.convert_to_tensor(g), step.axes[key]) for key, g in gradients.items()
    }
    zeros = [key for key in gradients if before_batch_norm(key, gradients)]
    compare_doubtful_gradients(comparison, gradients, in_float64, zeros)
    return step, results


def check_step(case, comparison: Comparison) -> None:
    """A training step with given proposals and samples: everything up to all gradients."""
    step, results = run_step(case, comparison)
    compare_first_stage(comparison, results["pyramid"], results["outputs"], results["semantic"])
    for i in images_of(case):
        codes = their_codes(results["anchor_matches"][i].numpy())
        comparison.equal(f"out.rpn_gt_inds.{i}", np.where(results["inside"][i], codes, -2))
    losses = results["losses"]
    compare_sums(case, comparison, losses["rpn_classification"], "out.loss_rpn_cls")
    compare_sums(case, comparison, losses["rpn_box"], "out.loss_rpn_bbox")
    for path, variable in named_variables(step.detector).items():
        key = f"out.new.{step.names[path][0]}"
        if key in case.output_specs:
            comparison.output(key, variable.numpy())


def before_batch_norm(key: str, keys) -> bool:
    """Whether a key is of the bias of a PConv's convolution that a batch norm follows."""
    module, found, _ = key.partition(".Pconv.")
    return bool(found) and key.endswith(".bias") and f"{module}.bn.weight" in keys


def compare_first_stage(comparison, pyramid, outputs, semantic):
    """The maps behind the necks, the raw outputs of the RPN and those of the semantic head."""
    groups = {"fpn": pyramid, "rpn_cls": outputs["classification"], "rpn_reg": outputs["box"]}
    for name, maps in groups.items():
        for i, level in enumerate(maps):
            comparison.output(f"out.{name}.{i}", nchw(level))
    if semantic:
        comparison.output("out.semantic_pred", nchw(semantic["logits"]))
        comparison.output("out.semantic_feat", nchw(semantic["features"]))


# ---------------------------------------------------------------- a cascade by itself


class RoILayers(keras.layers.Layer):
    """The layers of an RoI part, named as in the authors' detector."""

    def __init__(self, layers, **kwargs):
        super().__init__(**kwargs)
        self.parts_of_roi = layers

    @property
    def parts(self):
        return {layer.name: layer for layer in self.parts_of_roi}


def check_cascade(case, comparison: Comparison) -> None:
    """A hybrid task cascade on given features and proposals: a training step, and detections."""
    step, results = run_step(case, comparison)
    one, meta = [level[:1] for level in results["pyramid"]], case.config["test_meta"]
    compare_roi_inference(case, comparison, step.detector, one, meta, "out.test.")


# ---------------------------------------------------------------- detections


def compare_roi_inference(case, comparison, detector, pyramid, meta, prefix="out."):
    """Everything behind given proposals of one image: stages, boxes, detections, masks."""
    key = "in.proposals" if "in.proposals" in case.data else "in.proposals.0"
    proposals = tf.constant(case.data[key][None, :, :4])
    count = proposals.shape[1]
    present = tf.fill([1, count], True)
    image_sizes = tf.constant([meta["img_shape"][:2]])
    scale = np.float32(meta["scale_factor"])
    original_sizes = tf.cast(image_sizes, tf.float32) / scale
    roi = detector.roi

    @tf.function(autograph=False)
    def run(pyramid):
        semantic = roi.semantic_outputs(pyramid)
        steps = roi.steps(pyramid, semantic, proposals, present, image_sizes)
        scored = roi.scored_boxes(steps, present, image_sizes)
        background = roi.stages[-1].refined(
            steps[-1], steps[-1]["rois"], tf.zeros([1, count], tf.int32), image_sizes
        )
        found = detector.detect_in(pyramid, proposals, present, image_sizes, original_sizes)
        return semantic, steps, scored[0], background, found

    semantic, steps, boxes, background, found = run(pyramid)
    for i, step in enumerate(steps):
        comparison.output(f"{prefix}cls_score.{i}", step["classes"][0])
        comparison.output(f"{prefix}bbox_pred.{i}", step["boxes"][0].numpy().reshape(count, -1))
        if i:
            rois = np.hstack([np.zeros((count, 1)), step["rois"][0].numpy()])
            comparison.output(f"{prefix}rois.{i}", rois)
    if not roi.stages[-1].head.class_agnostic:
        boxes = tf.concat([background[:, :, None], boxes], axis=2)
    comparison.output(f"{prefix}boxes", (boxes[0].numpy() / scale).reshape(count, -1))
    logits = np.mean([step["classes"][0].numpy() for step in steps], axis=0)
    comparison.output(f"{prefix}scores", tf.nn.softmax(logits))
    compare_detections(case, comparison, found, prefix=prefix)
    if roi.masks:
        compare_masks(case, comparison, detector, pyramid, semantic, found, meta, prefix)


def check_test(case, comparison: Comparison) -> None:
    """One image: the first stage, its proposals, the stages behind it, detections."""
    detector, (meta,) = detector_of(case), case.config["img_metas"]
    import_state_dict(detector, case.params())
    image_sizes = tf.constant([meta["img_shape"][:2]])

    @tf.function(autograph=False)
    def run(images):
        pyramid, outputs = detector.pyramid_and_outputs(images, training=False)
        found = detector.proposals(outputs, image_sizes, detector.test_proposals)
        return pyramid, outputs, found, detector.roi.semantic_outputs(pyramid)

    images = nhwc(case.inputs()[f"{case.name}.img"])
    pyramid, outputs, found, semantic = run(images)
    compare_first_stage(comparison, pyramid, outputs, semantic)
    boxes, scores, kept = (x[0].numpy() for x in found)
    ours, proposals = np.column_stack([boxes, scores])[kept], case.data["in.proposals"]
    error = relative_error(in_their_order(ours, proposals), proposals)
    if not error <= comparison.tolerance:
        comparison.problems.append(f"in.proposals: relative error {error:.1e}")
    compare_roi_inference(case, comparison, detector, pyramid, meta)
