"""RepPoints against numpy: targets of both stages, losses, decoding; its head."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_detector import TinyBackbone, random_batch, tiny_detector

from sepc_tf import compat
from sepc_tf.checkpoints import mmdet_names
from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.detectors import RepPoints
from sepc_tf.detectors.reppoints import RepPointsOptions
from sepc_tf.detectors.reppoints_head import RepPointsHead
from sepc_tf.errors import ConfigError
from sepc_tf.flops import count_layer
from sepc_tf.necks import FPN, ConvTowers

STRIDES = (8, 16, 32, 64, 128)
SIZES = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]  # of 64 x 96 pixels
TRANSFER = np.float32([0.2, -0.3])
CONVENTIONS = pytest.mark.parametrize("convention", ["modern", "mmdet1"])


@pytest.fixture(scope="module")
def detectors():
    """A detector of each convention, with a moment transfer that matters."""
    found = {name: tiny_detector(RepPoints, convention=name) for name in ("modern", "mmdet1")}
    for detector in found.values():
        detector.head.moment_transfer.assign(TRANSFER)
    return found


def random_outputs(batch=4, seed=0):
    """Raw outputs whose boxes are about as large as objects are."""
    rng = np.random.default_rng(seed)

    def maps(channels, shift, scale):
        return [
            tf.constant(rng.normal(shift, scale, (batch, *size, channels)), tf.float32)
            for size in SIZES
        ]

    return {
        "classification": maps(3, -2.0, 1.0),
        "points_init": maps(18, 0.0, 1.5),
        "points_refine": maps(18, 0.0, 2.0),
    }


def rows(maps):
    return np.concatenate([x.numpy().reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)


def numpy_cells(convention):
    """Corner of each cell (or its centre) in pixels, and the stride, as mmdetection loops."""
    shift = 0.5 if convention == "modern" else 0.0
    cells = [
        ((column + shift) * stride, (row + shift) * stride, stride)
        for stride, (height, width) in zip(STRIDES, SIZES)
        for row in range(height)
        for column in range(width)
    ]
    return np.array(cells)


def numpy_boxes(points, cells):
    """Moment boxes in pixels, with half sides of std * exp(transfer)."""
    y, x = points[..., ::2].astype(np.float64), points[..., 1::2].astype(np.float64)
    half_x = x.std(-1, ddof=1) * np.exp(TRANSFER[0])
    half_y = y.std(-1, ddof=1) * np.exp(TRANSFER[1])
    left, top = x.mean(-1) - half_x, y.mean(-1) - half_y
    right, bottom = x.mean(-1) + half_x, y.mean(-1) + half_y
    boxes = np.stack([left, top, right, bottom], axis=-1)
    return boxes * cells[:, 2:] + cells[:, [0, 1, 0, 1]]


def numpy_iou(boxes, box, last):
    overlap = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + last
    overlap = np.maximum(overlap, 0).prod(-1)
    area, areas = (box[2:] - box[:2] + last).prod(), (boxes[:, 2:] - boxes[:, :2] + last).prod(-1)
    return overlap / (area + areas - overlap)


def numpy_targets(outputs, batch, convention):
    """The two assignments, image by image and object by object."""
    cells, last = numpy_cells(convention), 1.0 if convention == "mmdet1" else 0.0
    candidates = numpy_boxes(rows(outputs["points_init"]), cells)
    init, refine = (np.full(candidates.shape[:2], -1) for _ in range(2))
    for image, (objects, labels) in enumerate(zip(batch["boxes"], batch["labels"])):
        objects = objects[labels >= 0].astype(np.float64)
        height, width = -(-batch["image_sizes"][image] // 32) * 32
        valid = (cells[:, 0] // cells[:, 2] * cells[:, 2] < width) & (
            cells[:, 1] // cells[:, 2] * cells[:, 2] < height
        )
        distance = np.full(len(cells), np.inf)
        for index, box in enumerate(objects):
            sides, centre = box[2:] - box[:2], (box[:2] + box[2:]) / 2
            stride = 2 ** np.clip(int(np.log2(sides / 4).mean()), 3, 7)
            distances = np.linalg.norm((cells[:, :2] - centre) / sides, axis=1)
            distances[~valid | (cells[:, 2] != stride)] = np.inf
            nearest = distances.argmin()
            if distances[nearest] < distance[nearest]:
                distance[nearest], init[image, nearest] = distances[nearest], index
        if len(objects):
            ious = np.stack([numpy_iou(candidates[image], box, last) for box in objects], axis=1)
            ious[~valid] = -1
            best = ious.max(axis=1)
            refine[image] = np.where(best >= 0.5, ious.argmax(axis=1), np.where(best < 0.4, -1, -2))
            for index in range(len(objects)):
                highest = ious[:, index].max()
                if highest > 0 or convention == "mmdet1":
                    refine[image, valid & (ious[:, index] >= highest)] = index
        init[image, ~valid], refine[image, ~valid] = -2, -2
    return candidates, init, refine


def numpy_losses(outputs, batch, convention):
    cells = numpy_cells(convention)
    candidates, init, refine = numpy_targets(outputs, batch, convention)
    refined = numpy_boxes(rows(outputs["points_refine"]), cells)
    logits = rows(outputs["classification"]).astype(np.float64)
    counts = [np.maximum((m >= 0).sum(axis=1), 1).sum() for m in (init, refine)]
    losses = {"classification": 0.0, "box_init": 0.0, "box_refine": 0.0}
    for image, cell in np.ndindex(refine.shape):
        match = refine[image, cell]
        for k in range(3) if match != -2 else ():
            p = 1 / (1 + np.exp(-logits[image, cell, k]))
            positive = match >= 0 and batch["labels"][image, match] == k
            q, weight = (p, 0.25) if positive else (1 - p, 0.75)
            losses["classification"] -= weight * (1 - q) ** 2 * np.log(q) / counts[1]
        for name, boxes, matches, weight, count in (
            ("box_init", candidates, init, 0.5, counts[0]),
            ("box_refine", refined, refine, 1.0, counts[1]),
        ):
            if matches[image, cell] >= 0:
                wanted = batch["boxes"][image, matches[image, cell]]
                d = np.abs(boxes[image, cell] - wanted) / (4 * cells[cell, 2])
                d = np.where(d < 0.11, d * d / 0.22, d - 0.055)
                losses[name] += weight * d.sum() / count
    return losses


@CONVENTIONS
def test_targets_and_losses_as_in_numpy(detectors, convention):
    # Of these seeds both conventions have matched, ignored and other cells in the second stage.
    detector, outputs = detectors[convention], random_outputs(seed=1)
    batch = random_batch()  # the first image has no object, the others one to three
    batch["image_sizes"][1] = 30, 60
    candidates, init, refine = numpy_targets(outputs, batch, convention)
    targets = detector.label_cells(outputs, batch)
    np.testing.assert_allclose(targets["candidates"], candidates, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(targets["init"], init)
    np.testing.assert_array_equal(targets["refine"], refine)
    assert (init >= 0).sum() >= 4 and (refine >= 0).sum() > (init >= 0).sum()
    assert ((refine == -2) & (init != -2)).any()
    losses = detector.compute_losses(outputs, batch)
    for name, want in numpy_losses(outputs, batch, convention).items():
        np.testing.assert_allclose(losses[name], want, rtol=1e-5, err_msg=name)


def test_images_without_objects_and_padding(detectors):
    detector, outputs, batch = detectors["modern"], random_outputs(), random_batch(3)
    empty = {**batch, "boxes": batch["boxes"] * 0 - 1, "labels": batch["labels"] * 0 - 1}
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        losses = detector.compute_losses(outputs, empty)
        total = tf.add_n(list(losses.values()))
    assert losses["box_init"] == 0 and losses["box_refine"] == 0
    np.testing.assert_allclose(
        losses["classification"], numpy_losses(outputs, empty, "modern")["classification"], 1e-5
    )
    for gradient in tf.nest.flatten(tape.gradient(total, outputs)):
        assert np.isfinite(gradient).all()
    longer = {
        **batch,
        "boxes": np.pad(batch["boxes"], ((0, 0), (0, 9), (0, 0)), constant_values=-1),
        "labels": np.pad(batch["labels"], ((0, 0), (0, 9)), constant_values=-1),
    }
    short, long = (detector.compute_losses(outputs, b) for b in (batch, longer))
    for name, loss in short.items():
        np.testing.assert_allclose(long[name], loss, rtol=1e-6)


@CONVENTIONS
def test_decoding_as_in_numpy(detectors, convention):
    detector, outputs = detectors[convention], random_outputs(batch=2)
    image_sizes = np.array([[64, 96], [40, 50]])
    detector.nms_pre = 20
    boxes, scores = detector.scored_boxes(outputs, image_sizes)
    decoded = numpy_boxes(rows(outputs["points_refine"]), numpy_cells(convention))
    # To the width itself, also where the last pixel counts.
    limits = image_sizes[:, None, [1, 0, 1, 0]]
    decoded = np.clip(decoded, 0, limits)
    probabilities = 1 / (1 + np.exp(-rows(outputs["classification"])))
    start = kept = 0
    for height, width in SIZES:
        level = slice(start, start + height * width)
        start += height * width
        count = min(height * width, 20)
        for image in range(2):
            order = np.argsort(-probabilities[image, level].max(-1), kind="stable")[:count]
            chosen = slice(kept, kept + count)
            np.testing.assert_allclose(
                boxes[image, chosen], decoded[image, level][order], rtol=1e-5, atol=1e-4
            )
            np.testing.assert_allclose(
                scores[image, chosen], probabilities[image, level][order], rtol=1e-5
            )
        kept += count
    assert boxes.shape[1] == kept


# ---------------------------------------------------------------- the head


def features(seed=0, channels=4):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=(2, *s, channels)), tf.float32) for s in ((4, 5), (1, 2))]


def random_head(**options):
    """A head with weights large enough for points to move."""
    head = RepPointsHead(3, **options)
    head.build(([(None, None, None, 4)], [(None, None, None, 4)]))
    rng = np.random.default_rng(1)
    for name, variable in named_variables(head).items():
        scale = 0.5 if name != "moment_transfer" else 0.0
        variable.assign(rng.normal(0, scale, tuple(variable.shape)))
    return head


def sampled(feature, points, row, column):
    """Bilinear values of a map at points (y, x) relative to a cell; 0 outside."""
    values = np.zeros((len(points), feature.shape[-1]))
    for k, (y, x) in enumerate(points + np.array([row, column])):
        for i in (int(np.floor(y)), int(np.floor(y)) + 1):
            for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= i < feature.shape[0] and 0 <= j < feature.shape[1]:
                    values[k] += (1 - abs(y - i)) * (1 - abs(x - j)) * feature[i, j]
    return values


def test_classes_are_seen_at_the_points():
    head, cls, box = random_head(), features(0), features(1)
    outputs = head((cls, box))
    kernel = head.class_conv_kernel.numpy().reshape(9, 4, 4)
    last, bias = (np.array(v) for v in (head.class_out.kernel[0, 0], head.class_out.bias))
    for image, row, column in ((0, 0, 0), (1, 2, 3), (1, 3, 4)):
        points = outputs["points_init"][0][image, row, column].numpy().reshape(9, 2)
        values = sampled(cls[0][image].numpy(), points, row, column)
        hidden = np.maximum(np.einsum("kc,kcf->f", values, kernel), 0)
        got = outputs["classification"][0][image, row, column]
        np.testing.assert_allclose(got, hidden @ last + bias, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_first_points():
    def gradients(scale):
        head, inputs = random_head(gradient_scale=scale), (features(0), features(1))
        with tf.GradientTape(persistent=True) as tape:
            outputs = head(inputs)
            totals = [
                tf.reduce_sum(outputs[n][0] ** 2) for n in ("classification", "points_refine")
            ]
        return [tape.gradient(total, head.points_init_out.variables[0]) for total in totals]

    none, all_of_it, tenth = (gradients(scale) for scale in (0.0, 1.0, 0.1))
    for nothing, whole, part in zip(none, all_of_it, tenth):
        assert np.abs(nothing).max() == 0 < np.abs(whole).max()  # not through the sum with init
        np.testing.assert_allclose(part, 0.1 * whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


def test_gradient_of_the_moment_transfer_is_scaled():
    points = tf.constant(np.random.default_rng(0).normal(size=(5, 18)), tf.float32)

    def gradient(scale):
        head = random_head(moment_gradient_scale=scale)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(head.boxes(points)[:, 2:])
        return tape.gradient(total, head.moment_transfer)

    half = points.numpy().reshape(5, 9, 2).std(axis=1, ddof=1).sum(axis=0)[::-1]
    np.testing.assert_allclose(gradient(1.0), half, rtol=1e-5)
    np.testing.assert_allclose(gradient(0.01), half / 100, rtol=1e-5)


def test_the_head_starts_with_the_prior_and_saves():
    head = RepPointsHead(3, filters=6, transform="minmax", prior=0.02, name="head")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    assert again.get_config() == head.get_config()
    outputs = again((features(0), features(1)))
    for kind, channels in (("classification", 3), ("points_init", 18), ("points_refine", 18)):
        assert [x.shape for x in outputs[kind]] == [(2, 4, 5, channels), (2, 1, 2, channels)]
        shapes = head.compute_output_shape(([(2, 4, 5, 4)], [(2, 4, 5, 4)]))[kind]
        assert shapes == [(2, 4, 5, channels)]
    np.testing.assert_allclose(tf.sigmoid(outputs["classification"][0]), 0.02, rtol=1e-2)
    assert again.points_init_out.kernel.shape == (1, 1, 6, 18)
    assert "moment_transfer" not in named_variables(again)


def test_the_head_in_mixed_precision():
    exact = random_head()
    half = random_head(dtype="mixed_bfloat16")
    for name, variable in named_variables(half).items():
        assert variable.dtype == "float32", name
    for kind, maps in half((features(0), features(1))).items():
        for got, want in zip(maps, exact((features(0), features(1)))[kind]):
            assert got.dtype == tf.float32
            assert np.abs(got - want).max() < 0.1 * np.abs(want).max()


def test_multiply_adds_of_the_head():
    head = random_head()
    shape, cells = (1, 6, 8, 4), 48
    plain = 9 * 4 * 4 * cells
    deformable = plain + 8 * 9 * 4 * cells
    outs = 4 * (3 + 18 + 18) * cells
    biases, relus = (4 + 3 + 18 + 18) * cells, 3 * 4 * cells
    want = plain + 2 * deformable + outs + biases + relus
    assert count_layer(head, ([shape], [shape])).multiply_adds == want


# ---------------------------------------------------------------- the whole detector


def test_losses_and_gradients_compiled_by_xla():
    detector = RepPoints.from_parts(
        TinyBackbone(name="backbone"),
        FPN(4, num_levels=3, name="fpn"),
        ConvTowers(4, num_convs=0, name="towers"),
        num_classes=3,
    )
    batch = random_batch(batch=2)
    variables = [compat.variable_value(v) for v in detector.trainable_variables]

    def step():
        with tf.GradientTape() as tape:
            losses = detector.batch_losses(batch, training=True)
            total = tf.add_n(list(losses.values()))
        return losses, tape.gradient(total, variables)

    compiled, eager = tf.function(step, jit_compile=True)(), step()
    assert min(float(loss) for loss in eager[0].values()) > 0
    for got, want in zip(tf.nest.flatten(compiled), tf.nest.flatten(eager)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_names_of_mmdetection():
    layers = ("cls_out", "pts_init_conv", "pts_init_out", "pts_refine_out")
    assert {key for key, _ in mmdet_names(random_head()).values()} == {
        "moment_transfer",
        "reppoints_cls_conv.weight",
        "reppoints_pts_refine_conv.weight",
        *(f"reppoints_{layer}.{part}" for layer in layers for part in ("weight", "bias")),
    }


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"num_points must be the square of an odd number.*got 16"):
        RepPointsHead(3, num_points=16)
    with pytest.raises(ValueError, match="transform must be one of"):
        RepPointsHead(3, transform="mean")
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        RepPointsHead(0)
    unused = RepPointsOptions(transform="minmax", moment_gradient_scale=0.1)
    with pytest.raises(ConfigError, match=r"moment_gradient_scale: 0.1 has no effect on transform"):
        tiny_detector(RepPoints, options=unused)
    with pytest.raises(ValueError, match=r"one stride for each pyramid level; got 2 .* 5 levels"):
        tiny_detector(RepPoints, options=RepPointsOptions(strides=[8, 16]))
