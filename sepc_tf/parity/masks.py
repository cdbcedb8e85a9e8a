"""Family of cases: masks; mask heads, their targets and loss, the semantic head."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from sepc_tf.detectors.two_stage.mask_head import MaskBranch, MaskHead
from sepc_tf.detectors.two_stage.semantic_head import SemanticBranch, SemanticHead
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.ops.bitmaps import pack_masks
from sepc_tf.ops.matching import IGNORED
from sepc_tf.ops.paste import paste_masks
from sepc_tf.parity.comparing import NETWORK_TOLERANCE, OPERATOR_TOLERANCE, Comparison
from sepc_tf.parity.golden import level_inputs, nchw, nhwc
from sepc_tf.parity.modules import compare_float32_gradients
from sepc_tf.parity.two_stage import layer_results, padded


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
    heads = config.get("heads")
    if isinstance(heads, list) and heads[0].get("type") == "HTCMaskHead":
        return check_mask_heads_with_flow, NETWORK_TOLERANCE
    head = config.get("head")
    if not isinstance(head, dict):
        return None
    if head.get("type") == "FusedSemanticHead":
        return check_semantic_head, NETWORK_TOLERANCE
    if head.get("type") != "FCNMaskHead":
        return None
    if "mask_size" in config:
        return check_mask_loss, OPERATOR_TOLERANCE
    if "mask_thr_binary" in config:
        return check_paste, OPERATOR_TOLERANCE
    return check_mask_head, NETWORK_TOLERANCE


# ---------------------------------------------------------------- heads


def mask_head_of(head: dict, **settings) -> MaskHead:
    """A mask head of an mmdetection `mask_head`."""
    return MaskHead(
        head["num_classes"] - 1, head["conv_out_channels"], head["num_convs"], **settings
    )


def check_mask_head(case, comparison: Comparison) -> None:
    """The convolutions of a mask head: outputs and all gradients."""
    inputs = case.inputs()
    x, cotangent = (nhwc(inputs[f"{case.name}.{key}"])[None] for key in ("x", "cot.mask_pred"))

    def results(dtype):
        head = mask_head_of(case.config["head"], dtype=dtype)
        head.build(x.shape)
        features, _ = head.compute_output_shape(x.shape)
        cotangents = (np.zeros(features, np.float32), cotangent)
        outputs, loss, by_x, gradients = layer_results(case, [head], tf.cast(x, dtype), cotangents)
        return outputs, loss, {**gradients, "out.grad_x": nchw(by_x[0])}

    (_, logits), loss, gradients = results("float32")
    comparison.output("out.mask_pred", nchw(logits[0]))
    comparison.output("out.loss", *loss)
    compare_float32_gradients(comparison, gradients, lambda: results("float64")[2])


class MaskHeads(keras.layers.Layer):
    """Mask heads with information flow, named as in the authors' detector."""

    def __init__(self, heads: list[MaskHead], **kwargs):
        super().__init__(**kwargs)
        self.branch = MaskBranch(RoIAlign(), heads)
        self.heads = heads

    @property
    def parts(self):
        return {head.name: head for head in self.heads}

    def build(self, shape):
        for head in self.heads:
            features = (*shape[:-1], head.filters)
            head.build((shape, features) if head.flow else shape)
        self.built = True

    def call(self, pooled):
        return self.branch.features_and_logits(pooled, None, len(self.heads))


def check_mask_heads_with_flow(case, comparison: Comparison) -> None:
    """The mask heads of a hybrid task cascade, one behind the other."""
    inputs, configs = case.inputs(), case.config["heads"]
    x = nhwc(inputs[f"{case.name}.x"])[None]
    cotangents = [nhwc(inputs[f"{case.name}.cot.mask_pred.{i}"])[None] for i in range(len(configs))]

    def results(dtype):
        heads = MaskHeads(
            [
                mask_head_of(config, flow=i > 0, name=f"mask_head_{i}", dtype=dtype)
                for i, config in enumerate(configs)
            ],
            dtype=dtype,
        )
        heads.build(x.shape)
        with_features = [
            (np.zeros((*x.shape[:-1], head.filters), np.float32), cotangent)
            for head, cotangent in zip(heads.heads, cotangents)
        ]
        outputs, loss, by_x, gradients = layer_results(
            case, [heads], tf.cast(x, dtype), with_features
        )
        return outputs, loss, {**gradients, "out.grad_x": nchw(by_x[0])}

    outputs, loss, gradients = results("float32")
    for i, (features, logits) in enumerate(outputs):
        comparison.output(f"out.feat.{i}", nchw(features[0]))
        comparison.output(f"out.mask_pred.{i}", nchw(logits[0]))
    merged = np.mean([tf.sigmoid(logits[0]) for _, logits in outputs], axis=0)
    comparison.output("out.merged", nchw(merged))
    comparison.output("out.loss", *loss)
    compare_float32_gradients(comparison, gradients, lambda: results("float64")[2])


def check_semantic_head(case, comparison: Comparison) -> None:
    """The semantic head: logits, features, loss with unknown cells, gradients of both."""
    config, inputs = case.config["head"], case.inputs()
    cotangent = nhwc(inputs[f"{case.name}.cot.semantic_feat"])
    batch = {"semantic": semantic_map(case)}

    def results(dtype):
        head = SemanticHead(
            config["num_classes"],
            config["num_ins"],
            config["conv_out_channels"],
            config["num_convs"],
            config["fusion_level"],
            dtype=dtype,
        )
        branch = SemanticBranch(
            RoIAlign((8,), 14, convention="mmdet1"), head, config["loss_weight"]
        )
        pyramid = [tf.cast(x, dtype) for x in level_inputs(case, "x")]
        head.build([x.shape for x in pyramid])
        zeros = np.zeros((*cotangent.shape[:-1], config["num_classes"]), np.float32)
        outputs, loss, by_inputs, gradients = layer_results(
            case,
            [head],
            pyramid,
            {"logits": zeros, "features": cotangent},
            lambda outputs: branch.loss(outputs, batch),
        )
        gradients |= {f"out.grad_x.{i}": nchw(g) for i, g in enumerate(by_inputs)}
        return outputs, (*loss, branch.loss(outputs, batch)), gradients

    outputs, (total, unit, own), gradients = results("float32")
    comparison.output("out.semantic_pred", nchw(outputs["logits"]))
    comparison.output("out.semantic_feat", nchw(outputs["features"]))
    comparison.output("out.loss_semantic_seg", own)
    comparison.output("out.loss", total, unit)
    compare_float32_gradients(comparison, gradients, lambda: results("float64")[2])


def semantic_map(case) -> tf.Tensor:
    """The labels of the case, given for cells of 8 x 8 pixels, as labels of the pixels."""
    return tf.constant(case.data["in.gt_semantic_seg"][:, 0].repeat(8, axis=1).repeat(8, axis=2))


# ---------------------------------------------------------------- targets and loss


def padded_masks(case) -> dict:
    """The masks of the case's objects as a batch; empty where it has none."""
    images = sorted(int(key.split(".")[-1]) for key in case.data if key.startswith("in.gt_masks."))
    packed = [pack_masks([*case.data[f"in.gt_masks.{i}"]]) for i in images]
    if not packed:
        return {}
    bitmaps, frames, offsets = zip(*packed)
    return {
        "bitmaps": tf.constant(padded(bitmaps)[0]),
        "frames": tf.constant(padded(frames)[0]),
        "offsets": tf.constant(padded(offsets, -1)[0]),
    }


def check_mask_loss(case, comparison: Comparison) -> None:
    """Targets of given positives, their loss and its gradient."""
    head = case.config["head"]
    branch = MaskBranch(RoIAlign(size=case.config["mask_size"] // 2), [], "mmdet1")
    batch, images = (
        padded_masks(case),
        range(len([key for key in case.data if key.startswith("in.pos_bboxes.")])),
    )
    batch["image_sizes"] = tf.constant([case.data[f"in.gt_masks.{i}"].shape[1:] for i in images])

    def of_images(name, value):
        return padded([case.data[f"in.{name}.{i}"] for i in images], value)

    boxes, here = of_images("pos_bboxes", 0.0)
    matches = of_images("pos_assigned_gt_inds", 0)[0].astype(np.int32)
    labels = of_images("pos_labels", 0)[0].astype(np.int32)
    samples = {
        "boxes": tf.constant(boxes, tf.float32),
        "matches": tf.constant(np.where(here, matches, IGNORED)),
    }
    targets = branch.targets(samples, batch).numpy()[here]
    comparison.equal("out.mask_targets", targets)
    halves = [
        half_rule(case.data[f"in.gt_masks.{i}"][matches[i, n]], boxes[i, n], targets.shape[-1])
        for i, n in np.argwhere(here)
    ]
    comparison.equal("out.half_rule", np.stack(halves))
    raw = nhwc(case.inputs()[f"{case.name}.mask_pred"])
    places = tf.constant(np.argwhere(here))

    @tf.function(autograph=False)
    def run(raw):
        with tf.GradientTape() as tape:
            tape.watch(raw)
            own = tf.gather(raw, labels[here], axis=3, batch_dims=1)
            logits = tf.scatter_nd(places, own, [*here.shape, *own.shape[1:]])
            loss = branch.loss(logits, samples, batch)
        return loss, tape.gradient(loss, raw)

    loss, gradient = run(raw)
    comparison.output("out.loss_mask", np.reshape(loss, [1]))
    gradient = nchw(gradient)
    comparison.output("out.grad_mask_pred", gradient)
    comparison.output("out.grad_mask_pred_label", gradient[np.arange(len(gradient)), labels[here]])
    if gradient.shape[1] != head["num_classes"]:
        comparison.problems.append(f"{gradient.shape[1]} channels, {head['num_classes']} classes")


def half_rule(mask: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """The crop of a mask at a box, resized bilinearly in float64: 1 from a half on.

    What the authors' targets would be without the rounding of 8-bit images.
    """
    limits = np.array([*mask.shape[::-1], *mask.shape[::-1]]) - 1
    x1, y1, x2, y2 = np.clip(box, 0, limits).astype(int)
    crop = mask[y1 : max(y2, y1) + 1, x1 : max(x2, x1) + 1].astype(np.float64)

    def matrix(number):
        position = np.clip((np.arange(size) + 0.5) * number / size - 0.5, 0, number - 1)
        return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(number)))

    return matrix(crop.shape[0]) @ crop @ matrix(crop.shape[1]).T >= 0.5


# ---------------------------------------------------------------- detections


def check_paste(case, comparison: Comparison) -> None:
    """Masks of the image from maps of the detections, at the original and at the input's size."""
    config = case.config
    boxes, labels = case.data["in.det_bboxes"][:, :4], case.data["in.det_labels"]
    logits = case.inputs()[f"{case.name}.mask_pred"]
    maps = tf.sigmoid(logits[np.arange(len(labels)), labels + 1])
    scale = np.float32(config["scale_factor"])
    original = np.array(config["ori_shape"][:2])
    resized = np.round(original * config["scale_factor"]).astype(int)
    for suffix, divisor, size in (("", scale, original), ("_unscaled", np.float32(1), resized)):
        theirs = case.data[f"out.masks{suffix}"].astype(bool)
        compare_pasted(comparison, f"out.masks{suffix}", maps, boxes / divisor, size, theirs)
        if not np.array_equal(decoded(config[f"rle_masks{suffix}"]), theirs):
            comparison.problems.append(f"rle_masks{suffix} are not out.masks{suffix}")


def compare_pasted(comparison, key, maps, boxes, size, theirs: np.ndarray) -> np.ndarray:
    """Compares masks of the image, but for pixels whose probability is a half to the tolerance.

    Args:
        comparison: of the case.
        key: what is compared.
        maps: `[D, n, n]` probabilities.
        boxes: `[D, 4]` xyxy in pixels of the image.
        size: its height and width.
        theirs: `[D, height, width]` bool.

    Returns:
        The masks, in which those pixels are as in `theirs`.
    """
    height, width = map(int, size)
    fewer, more = (
        paste_masks(maps + shift, tf.constant(boxes), height, width, "mmdet1").numpy()
        for shift in (-comparison.tolerance, comparison.tolerance)
    )
    pasted = np.where(fewer != more, theirs, fewer)
    comparison.equal(key, pasted, theirs)
    return pasted


def decoded(encoded: list[dict]) -> np.ndarray:
    """`[D, height, width]` bool of COCO's strings."""
    from pycocotools.mask import decode

    return decode(encoded).transpose(2, 0, 1).astype(bool)


def compare_masks(case, comparison, detector, pyramid, semantic, found, meta, prefix):
    """The masks of the detections of one image, as found and as logits of every stage.

    Args:
        case, comparison: as in `check_case`.
        detector: a `FasterRCNN` with a mask branch.
        pyramid, semantic: what its masks are made from.
        found: its detections in pixels of the original image.
        meta: of the image.
        prefix: of the keys.
    """
    boxes, labels = (case.data[f"{prefix}det_{name}"] for name in ("bboxes", "labels"))
    count = int(found["num_detections"][0])
    ours = [found[name][0, :count].numpy() for name in ("boxes", "scores", "classes")]
    theirs = np.column_stack([boxes, labels])
    order = np.abs(theirs[:, None] - np.column_stack(ours)).max(axis=-1).argmin(axis=1)
    rois = found["boxes"] * np.float32(meta["scale_factor"])
    present = found["classes"] >= 0
    pooled = detector.roi.mask_features(pyramid, semantic, rois, present)
    branch = detector.roi.masks
    columns = tf.maximum(found["classes"] + 1, 0)
    for i, logits in enumerate(branch.logits(pooled, columns, len(branch.heads))):
        comparison.output(f"{prefix}mask_pred_label.{i}", logits[0].numpy()[order])
    masks = found["masks"][0].numpy()[order]
    comparison.output(f"{prefix}mask_prob_label", masks)
    # The authors multiply the boxes by the scale and divide them again, then cut them to whole
    # pixels. Theirs are taken: ours, compared before, may be a rounding short of a whole number.
    scale = np.float32(meta["scale_factor"])
    boxes = boxes[:, :4] * scale / scale
    theirs = decoded(case.config["test_rle"])
    key = f"{prefix}mask_area"
    pasted = compare_pasted(comparison, key, masks, boxes, meta["ori_shape"][:2], theirs)
    comparison.equal(key, pasted.sum(axis=(1, 2)))
