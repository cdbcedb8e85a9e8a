"""FCOS: head, losses and decoding against numpy, what its options and conventions change."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_detector import TinyBackbone, random_batch, tiny_detector

from sepc_tf.checkpoints import export_state_dict, import_state_dict, named_variables
from sepc_tf.detectors import FCOS, FCOSHead
from sepc_tf.necks import FPN, ConvTowers
from sepc_tf.ops.matching import IGNORED
from sepc_tf.ops.points import PointMatcher, box_distances

Options = FCOS.Options
CONVENTIONS = ["modern", "mmdet1"]


def outputs_of(detector, seed=0, batch=4, size=(64, 96)):
    """Random outputs of the shapes that the detector gives."""
    rng = np.random.default_rng(seed)
    shapes = detector.head.compute_output_shape(detector.part_inputs((batch, *size, 3))["head"])
    outputs = {
        name: [tf.constant(rng.normal(0, 0.7, shape), tf.float32) for shape in levels]
        for name, levels in shapes.items()
    }
    scale = [2.0 * stride for stride in detector.matcher.strides]
    outputs["box"] = [tf.exp(x) * s for x, s in zip(outputs["box"], scale)]
    return outputs


def rows(maps):
    return np.concatenate([m.numpy().reshape(len(m), -1, m.shape[-1]) for m in maps], 1).astype(
        float
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_losses(detector, outputs, batch):
    """The docstring's formulas in double precision; the matches are the detector's."""
    last = 1.0 if detector.convention == "mmdet1" else 0.0
    matches = detector.label_points(outputs, batch)["matches"].numpy()
    matched, images = matches >= 0, np.arange(len(matches))[:, None]
    classes = np.where(matched, batch["labels"][images, matches], -1)
    points = np.concatenate([p.numpy() for p in detector.points(outputs)])

    positive = classes[..., None] == np.arange(detector.num_classes)
    p = sigmoid(rows(outputs["classification"]))
    q = np.where(positive, p, 1 - p)
    alpha = np.where(positive, detector.focal_alpha, 1 - detector.focal_alpha)
    focal = -alpha * (1 - q) ** detector.focal_gamma * np.log(q)

    here = np.broadcast_to(points, (*matches.shape, 2))[matched]
    want = batch["boxes"][images, matches][matched].astype(float)
    distances = rows(outputs["box"])[matched]
    got = np.concatenate([here - distances[:, :2], here + distances[:, 2:]], axis=1)
    low, high = here - want[:, :2], want[:, 2:] - here
    truth = np.sqrt(np.prod(np.minimum(low, high) / np.maximum(low, high), axis=1))

    def area(box):
        return np.prod(np.maximum(box[:, 2:] - box[:, :2] + last, 0), axis=1)

    inner = area(np.c_[np.maximum(got, want)[:, :2], np.minimum(got, want)[:, 2:]])
    union = area(got) + area(want) - inner
    outer = area(np.c_[np.minimum(got, want)[:, :2], np.maximum(got, want)[:, 2:]])
    iou = inner / union
    losses = {"iou": -np.log(np.maximum(iou, 1e-6)), "giou": 1 - iou + (outer - union) / outer}
    centre = sigmoid(rows(outputs["centerness"])[matched][:, 0])
    entropy = -(truth * np.log(centre) + (1 - truth) * np.log(1 - centre))

    count = matched.sum()
    divisor = count + len(matches) if detector.convention == "mmdet1" else count
    return {
        "classification": focal[matches != IGNORED].sum() / divisor,
        "box": (truth * losses[detector.box_loss]).sum() / truth.sum(),
        "centerness": entropy.mean(),
    }


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("box_loss", ["iou", "giou"])
def test_losses_are_those_of_the_docstring(convention, box_loss):
    options = Options(
        max_distances=[32, 48, 64, 80],
        center_radius=2.0 if box_loss == "giou" else None,
        focal_alpha=0.4,
        focal_gamma=1.5,
        classification_weight=2.0,
        box_loss=box_loss,
        box_weight=3.0,
        centerness_weight=4.0,
    )
    detector = tiny_detector(FCOS, convention=convention, options=options)
    batch, outputs = random_batch(), outputs_of(detector)
    matches = detector.label_points(outputs, batch)["matches"].numpy()
    assert (matches >= 0).sum() > 15
    expected = numpy_losses(detector, outputs, batch)
    got = detector.compute_losses(outputs, batch)
    for name, weight in (("classification", 2), ("box", 3), ("centerness", 4)):
        np.testing.assert_allclose(got[name], weight * expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_images_without_objects_and_padding(convention):
    detector = tiny_detector(FCOS, convention=convention)
    batch, outputs = random_batch(), outputs_of(detector)
    empty = {**batch, "boxes": 0 * batch["boxes"] - 1, "labels": 0 * batch["labels"] - 1}
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        losses = detector.compute_losses(outputs, empty)
        total = tf.add_n(list(losses.values()))
    gradients = tape.gradient(total, outputs)
    assert float(losses["classification"]) > 0
    assert float(losses["box"]) == float(losses["centerness"]) == 0
    for name in ("box", "centerness"):
        assert not any(np.any(x) for x in gradients[name])
    assert all(np.isfinite(x).all() for x in tf.nest.flatten(gradients))
    padded = {
        **batch,
        "boxes": np.pad(batch["boxes"], ((0, 0), (0, 9), (0, 0)), constant_values=-1),
        "labels": np.pad(batch["labels"], ((0, 0), (0, 9)), constant_values=-1),
    }
    short, long = (detector.compute_losses(outputs, b) for b in (batch, padded))
    for name in detector.loss_names:
        np.testing.assert_allclose(long[name], short[name], rtol=1e-6)


def test_points_in_the_padding_of_a_batch_are_ignored_in_modern_alone():
    batch = {**random_batch(), "image_sizes": np.tile(np.int32([[37, 66]]), (4, 1))}
    for convention, divisor, height, width in (("modern", 8, 5, 9), ("mmdet1", 8, 8, 12)):
        detector = tiny_detector(FCOS, convention=convention, size_divisor=divisor)
        matches = detector.label_points(outputs_of(detector), batch)["matches"].numpy()[0]
        used = matches[: 8 * 12].reshape(8, 12) != IGNORED
        assert used[:height, :width].all() and used.sum() == height * width


def detections_by_loops(detector, outputs, sizes):
    """Decoding of the first image by numpy: (score, class, box), best first."""
    mmdet1 = detector.convention == "mmdet1"
    last = 1.0 if mmdet1 else 0.0
    (height, width), found = sizes[0], []
    levels = zip(detector.points(outputs), *(outputs[k] for k in sorted(outputs)))
    for points, distances, centre, logits in levels:
        scores = sigmoid(logits[0].numpy().reshape(-1, detector.num_classes).astype(float))
        final = scores * sigmoid(centre[0].numpy().reshape(-1, 1).astype(float))
        distances = distances[0].numpy().reshape(-1, 4)
        boxes = np.c_[points - distances[:, :2], points + distances[:, 2:]]
        boxes = np.clip(boxes, 0, np.array([width, height, width, height]) - last)
        for n in np.argsort(-final.max(axis=1))[: detector.nms_pre]:
            for k in range(detector.num_classes):
                judged = scores[n, k] if mmdet1 else final[n, k]
                if judged > detector.score_threshold:
                    found.append((final[n, k], k, boxes[n]))
    kept = []
    for candidate in sorted(found, key=lambda entry: -entry[0]):
        for _, k, box in kept:
            a, b = candidate[2], box
            sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + last
            inner = np.prod(np.maximum(sides, 0))
            union = np.prod(a[2:] - a[:2] + last) + np.prod(b[2:] - b[:2] + last) - inner
            if k == candidate[1] and inner / union > detector.nms_iou:
                break
        else:
            kept.append(candidate)
    return kept[: detector.max_detections]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_decoding_is_that_of_loops(convention):
    settings = {"score_threshold": 0.4, "nms_iou": 0.4, "nms_pre": 30, "max_detections": 40}
    detector = tiny_detector(FCOS, convention=convention, **settings)
    outputs, sizes = outputs_of(detector, batch=1), [[60, 90]]
    expected = detections_by_loops(detector, outputs, sizes)
    found = {name: x[0].numpy() for name, x in detector.decode(outputs, tf.constant(sizes)).items()}
    assert len(expected) == found["num_detections"] > 10
    scores, classes, boxes = (np.array(column) for column in zip(*expected))
    # Below the threshold, where theirs looks at the class alone.
    assert (scores.min() < 0.4) == (convention == "mmdet1")
    np.testing.assert_allclose(found["scores"][: len(scores)], scores, rtol=1e-5)
    np.testing.assert_array_equal(found["classes"][: len(scores)], classes)
    np.testing.assert_allclose(found["boxes"][: len(scores)], boxes, atol=1e-3)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_truth_comes_back(convention):
    detector = tiny_detector(FCOS, convention=convention, nms_iou=0.99)
    batch, outputs = random_batch(), outputs_of(detector)
    targets = {name: x.numpy() for name, x in detector.label_points(outputs, batch).items()}
    matched = targets["matches"] >= 0
    points = tf.concat(detector.points(outputs), axis=0)
    rows_of = {
        "classification": np.where(np.eye(4)[targets["classes"]][..., :3] > 0, 8.0, -20.0),
        "box": np.where(matched[..., None], box_distances(points, targets["boxes"]), 1.0),
        "centerness": np.where(matched, 8.0, -20.0)[..., None],
    }
    counts = np.cumsum([len(p) for p in detector.points(outputs)])[:-1]
    for name, levels in outputs.items():
        parts = np.split(rows_of[name], counts, axis=1)
        outputs[name] = [tf.constant(p.reshape(x.shape), tf.float32) for p, x in zip(parts, levels)]
    found = detector.decode(outputs, tf.constant([[64, 96]] * 4))
    for image, matches in enumerate(targets["matches"]):
        objects = np.unique(matches[matches >= 0])
        assert len(objects) == found["num_detections"][image]
        want = np.c_[batch["labels"][image, objects], batch["boxes"][image, objects]]
        got = np.c_[found["classes"][image], found["boxes"][image]][: len(objects)]
        order = np.lexsort(want.T), np.lexsort(got.T)
        np.testing.assert_allclose(got[order[1]], want[order[0]], atol=1e-3)
    assert len(objects) > 1


def test_options_reach_the_head():
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    pyramids = [
        [tf.constant(rng.normal(size=(1, n, n, 4)), tf.float32) for n in (4, 2)] for _ in range(2)
    ]
    head = FCOSHead(3, strides=(8, 16), centerness_on_box=True, prior=0.2)
    outputs = head(pyramids)
    np.testing.assert_allclose(tf.sigmoid(outputs["classification"][0]), 0.2, atol=0.05)
    head.scales[1].scale.assign(2.5)
    raw = [head.distances(x).numpy() for x in pyramids[1]]
    for box, x, scale, unit in zip(head(pyramids)["box"], raw, (1.0, 2.5), (8, 16)):
        np.testing.assert_allclose(box, unit * np.exp(scale * x), rtol=1e-5)
    np.testing.assert_allclose(outputs["centerness"][1], head.centerness(pyramids[1][1]), rtol=1e-5)
    pixels = FCOSHead(3)
    outputs = pixels(pyramids)
    np.testing.assert_allclose(outputs["box"][1], np.exp(pixels.distances(pyramids[1][1])), 1e-5)
    np.testing.assert_allclose(outputs["centerness"][1], pixels.centerness(pyramids[0][1]), 1e-5)


def test_parts_that_do_not_fit():
    parts = [TinyBackbone(name="backbone"), FPN(8, name="fpn"), ConvTowers(8, 1, name="towers")]

    def fcos(strides=(8, 16, 32, 64, 128), **options):
        head = FCOSHead(3, strides=options.pop("head_strides", None), name="head")
        return FCOS(*parts, head, matcher=PointMatcher(strides), **options)

    for options, message in (
        ({"strides": (8, 16)}, "one stride for each pyramid level; got 2 strides and 5 levels"),
        ({"head_strides": (8, 16, 32, 64, 99)}, "must have the same strides; got .*99"),
        ({"box_loss": "l1"}, "box_loss must be one of .* got 'l1'"),
    ):
        with pytest.raises(ValueError, match=message):
            fcos(**options)
    with pytest.raises(ValueError, match="num_classes must be at least 1; got 0"):
        FCOSHead(0)


def test_mixed_precision_and_a_compiled_loss():
    improved = Options(
        center_radius=1.5, normalize_distances=True, centerness_on_box=True, box_loss="giou"
    )
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        detector = tiny_detector(FCOS, options=improved)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    exact = tiny_detector(FCOS, options=improved)
    for name, variable in named_variables(detector).items():
        assert np.array(variable).dtype == np.float32, name
        named_variables(exact)[name].assign(variable)
    batch = random_batch()
    outputs, losses = detector(batch["images"]), exact.compute_losses(exact(batch["images"]), batch)
    assert {x.dtype for x in tf.nest.flatten(outputs)} == {tf.float32}
    compiled = tf.function(
        lambda outputs: detector.compute_losses(outputs, batch), jit_compile=True
    )
    half = detector.compute_losses(outputs, batch)
    for name, value in compiled(outputs).items():
        np.testing.assert_allclose(value, half[name], rtol=1e-5)
        np.testing.assert_allclose(value, losses[name], rtol=0.01)


def test_learns_one_batch():
    keras.utils.set_random_seed(1)
    detector = tiny_detector(FCOS, options=Options(normalize_distances=True))
    detector.compile(keras.optimizers.Adam(1e-2), clip_norm=35.0)
    data = tf.data.Dataset.from_tensors(random_batch()).repeat(15)
    losses = [detector.fit(data, verbose=0).history["loss"][0] for _ in range(2)]
    assert losses[1] < 0.8 * losses[0]


def test_weights_go_out_and_in_under_the_names_of_mmdetection():
    def fcos():
        towers = ConvTowers(8, num_convs=1, norm="group", name="towers")
        return FCOS.from_parts(
            TinyBackbone(name="backbone"), FPN(8, name="fpn"), towers, num_classes=3
        )

    first, second = fcos(), fcos()
    parts = {"towers": first.towers, "head": first.head}
    state = {
        key: value for part in parts.values() for key, value in export_state_dict(part).items()
    }
    theirs = {f"{kind}_convs.0.{name}.weight" for kind in ("cls", "reg") for name in ("conv", "gn")}
    theirs |= {f"{kind}_convs.0.gn.bias" for kind in ("cls", "reg")}
    theirs |= {
        f"fcos_{name}.{kind}"
        for name in ("cls", "reg", "centerness")
        for kind in ("weight", "bias")
    }
    theirs |= {f"scales.{level}.scale" for level in range(5)}
    assert set(state) == theirs
    assert state["fcos_cls.weight"].shape == (3, 8, 3, 3) and state["scales.0.scale"].shape == ()
    state["scales.3.scale"] = np.float32(1.5)
    for name, part in (("towers", second.towers), ("head", second.head)):
        keys = export_state_dict(parts[name]).keys()
        import_state_dict(part, {key: state[key] for key in keys})
    assert float(second.head.scales[3].scale) == 1.5
    values = named_variables(second.head)
    np.testing.assert_array_equal(
        values["class_logits/kernel"], named_variables(first.head)["class_logits/kernel"]
    )
