"""Areas, overlaps and clipping against hand counts and a pixel count."""

import json

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.boxes import (
    aligned_iou,
    box_areas,
    check_convention,
    clip_boxes,
    has_area,
    pairwise_iou,
    rescale_boxes,
)


def pixel_iou(a, b):
    """IoU by counting pixels, for boxes with integer corners whose last pixel counts."""
    masks = []
    for x1, y1, x2, y2 in (a, b):
        mask = np.zeros((40, 40), bool)
        mask[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = True
        masks.append(mask)
    return (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()


def test_iou_equals_a_count_of_pixels():
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 20, (2, 7, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 19, (2, 7, 2))], -1).astype(np.float32)
    want = [[pixel_iou(a, b) for b in boxes[1]] for a in boxes[0]]
    np.testing.assert_allclose(pairwise_iou(boxes[0], boxes[1], "mmdet1"), want, rtol=1e-6)
    # Without the last pixel the same count belongs to boxes one pixel longer.
    longer = boxes + np.float32([0, 0, 1, 1])
    np.testing.assert_allclose(pairwise_iou(longer[0], longer[1]), want, rtol=1e-6)


def test_batches_broadcast():
    boxes = tf.constant([[[0.0, 0.0, 2.0, 2.0]], [[0.0, 0.0, 1.0, 2.0]]])
    ious = pairwise_iou(tf.constant([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]]), boxes)
    np.testing.assert_allclose(ious, [[[1.0], [0.0]], [[0.5], [0.0]]])


def test_boxes_without_area_overlap_nothing():
    point = tf.constant([[1.0, 1.0, 1.0, 1.0]])
    assert pairwise_iou(point, point).numpy() == 0.0
    assert box_areas(point).numpy() == 0.0
    assert box_areas(point, "mmdet1").numpy() == 1.0


def test_a_box_has_area_where_both_sides_are_more_than_rounding():
    boxes = tf.constant(
        [[5.0, 0, 5, 8], [5, 0, 6, 8], [5, 8, 6, 8], [5, 0, 4, 8], [0, 0, 1e-40, 8], [6, 9, 5, 8]]
    )
    np.testing.assert_array_equal(has_area(boxes), [False, True, False, False, False, False])
    np.testing.assert_array_equal(has_area(boxes, "mmdet1"), [True, True, True, False, True, False])


def test_clipping_uses_each_images_own_size():
    boxes = tf.constant([[[-3.0, -4.0, 50.0, 60.0]]] * 2)
    sizes = tf.constant([[20, 30], [40, 10]])
    np.testing.assert_array_equal(clip_boxes(boxes, sizes)[:, 0], [[0, 0, 30, 20], [0, 0, 10, 40]])
    np.testing.assert_array_equal(
        clip_boxes(boxes, sizes, "mmdet1")[:, 0], [[0, 0, 29, 19], [0, 0, 9, 39]]
    )


def test_rescaling_uses_each_images_own_sizes_and_clips_in_modern_only():
    boxes = tf.constant([[[-1.0, 2.0, 10.5, 4.0]]] * 2)
    sizes, original = [[4, 10], [4, 10]], [[8, 5], [4, 30]]
    theirs = rescale_boxes(boxes, sizes, original, "mmdet1")[:, 0]
    np.testing.assert_allclose(theirs, [[-0.5, 4, 5.25, 8], [-3, 2, 31.5, 4]])
    ours = rescale_boxes(boxes, sizes, original)[:, 0]
    np.testing.assert_allclose(ours, [[0, 4, 5, 8], [0, 2, 30, 4]])


def test_rescaled_boxes_are_the_authors(golden_dir):
    case = json.loads((golden_dir / "manifest.json").read_text())["cases"]["decode_retina"]
    meta, data = case["config"]["img_meta"], np.load(golden_dir / case["file"])
    size = np.array([meta["img_shape"][:2]])
    got = rescale_boxes(data["out.boxes"][None], size, size / meta["scale_factor"], "mmdet1")
    np.testing.assert_allclose(got[0], data["out.boxes_rescaled"], rtol=1e-5, atol=1e-5)


def test_unknown_convention():
    with pytest.raises(ValueError, match=r"one of \['mmdet1', 'modern'\]; got 'mmdet2'"):
        check_convention("mmdet2")


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_aligned_iou_is_the_diagonal_and_giou_its_definition(convention):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 40, (2, 30, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 25, (2, 30, 2))], -1).astype(np.float32)
    iou = np.diag(pairwise_iou(boxes[0], boxes[1], convention))
    np.testing.assert_allclose(aligned_iou(boxes[0], boxes[1], convention), iou, rtol=1e-6)
    assert (iou == 0).any() and (iou > 0).any()
    last = 1.0 if convention == "mmdet1" else 0.0
    around = np.concatenate(
        [np.minimum(*boxes)[:, :2], np.maximum(*boxes)[:, 2:] + last], axis=1
    ).astype(np.float64)
    enclosing = (around[:, 2] - around[:, 0]) * (around[:, 3] - around[:, 1])
    areas = [np.asarray(box_areas(b, convention), np.float64) for b in boxes]
    union = (areas[0] + areas[1]) / (1 + iou)  # I = IoU U and U = A + B - I
    want = iou - (enclosing - union) / enclosing
    got = aligned_iou(boxes[0], boxes[1], convention, generalized=True)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_boxes_rescale_by_axis_and_end_at_the_image():
    boxes = tf.constant([[[0.0, 10.0, 50.0, 100.5]], [[2.0, 4.0, 6.0, 8.0]]])
    sizes, originals = [[100, 50], [10, 20]], [[200, 75], [5, 40]]
    want = np.array([[[0, 20, 75, 201]], [[4, 2, 12, 4]]], np.float32)
    np.testing.assert_allclose(rescale_boxes(boxes, sizes, originals, "mmdet1"), want)
    want[0, 0, 3] = 200
    np.testing.assert_allclose(rescale_boxes(boxes, sizes, originals), want)
