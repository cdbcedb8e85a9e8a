"""Segmentations against pycocotools, OpenCV and each other; what is none is named."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from sepc_tf.data.segmentations import (
    BROKEN,
    FEW_POINTS,
    MISSING,
    ODD_POLYGON,
    OTHER_SIZE,
    OUTSIDE_BOX,
    decode_mask,
    encode_mask,
    mask_fault,
    segmentation_fault,
    training_mask,
)

pytestmark = pytest.mark.same_on_both_stacks

SIZE = (40, 60)
POLYGONS = [[5, 4, 30, 6, 28, 30, 12, 33], [40, 10, 55.5, 11.2, 50, 35]]


def polygon_mask(polygons, height, width):
    rles = mask_utils.frPyObjects(polygons, height, width)
    return mask_utils.decode(mask_utils.merge(rles))


def uncompressed(mask):
    flat = np.concatenate([[0], mask.T.reshape(-1), [2]])
    ends = np.flatnonzero(np.diff(flat[:-1]))
    return {"size": list(mask.shape), "counts": np.diff([0, *ends, mask.size]).tolist()}


@pytest.fixture(scope="module")
def mask():
    rng = np.random.default_rng(4)
    blobs = cv2.GaussianBlur(rng.random(SIZE).astype(np.float32), (0, 0), 3)
    return (blobs > np.median(blobs)).astype(np.uint8)


def test_polygons_and_both_kinds_of_rle_are_read(mask):
    np.testing.assert_array_equal(decode_mask(POLYGONS, *SIZE), polygon_mask(POLYGONS, *SIZE))
    compressed = json.loads(json.dumps(encode_mask(mask)))
    for rle in (compressed, uncompressed(mask), uncompressed(1 - mask)):
        assert segmentation_fault(rle, *SIZE) == ""
    np.testing.assert_array_equal(decode_mask(compressed, *SIZE), mask)
    np.testing.assert_array_equal(decode_mask(uncompressed(mask), *SIZE), mask)


def test_real_segmentations_have_no_fault(coco128_dir):
    path = coco128_dir / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    images = {image["id"]: image for image in content["images"]}
    crowds = 0
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        box = (x, y, x + width, y + height)
        size = (image["height"], image["width"])
        assert mask_fault(annotation["segmentation"], box, *size) == ""
        crowds += isinstance(annotation["segmentation"], dict)
    assert crowds == 10


@pytest.mark.parametrize(
    ("segmentation", "fault"),
    [
        (None, MISSING),
        ([], MISSING),
        ([[]], FEW_POINTS),
        ([[5, 4, 30, 6]], FEW_POINTS),
        ([*POLYGONS, [5, 4, 30, 6]], FEW_POINTS),
        ([[5, 4, 30, 6, 28]], ODD_POLYGON),
        ([[5, 4, 30, 6, 28, 30, 12]], ODD_POLYGON),
        ([[5, 4, 30, 6, 28, float("nan")]], BROKEN),
        ([[5, 4, 30, 6, 28, 1e12]], BROKEN),
        ([[5, 4, 30, 6, 28, "30"]], BROKEN),
        ([5, 4, 30, 6, 28, 30], BROKEN),
        ("polygon", BROKEN),
        ({"size": [60, 40], "counts": [2400]}, OTHER_SIZE),
        ({"size": [40, 60]}, BROKEN),
        ({"size": [40, 60], "counts": [1000, 100]}, BROKEN),  # does not fill the image
        ({"size": [40, 60], "counts": [2500, -100]}, BROKEN),
        ({"size": [40, 60], "counts": "0"}, BROKEN),
        ({"size": [40, 60], "counts": "P"}, BROKEN),  # ends inside a number
        ({"size": [40, 60], "counts": "\xff\x00"}, BROKEN),
    ],
)
def test_what_stands_for_no_mask_is_named(segmentation, fault):
    assert segmentation_fault(segmentation, *SIZE) == fault


def test_a_mask_belongs_into_its_box(mask):
    tight = (5, 4, 30, 33)
    polygon = POLYGONS[:1]
    assert mask_fault(polygon, tight, *SIZE) == ""
    assert mask_fault(polygon, (7, 6, 28, 31), *SIZE) == "", "boxes may be a little smaller"
    assert mask_fault(polygon, (31, 4, 58, 33), *SIZE) == OUTSIDE_BOX
    assert mask_fault([[70, 4, 90, 6, 75, 30]], (50, 4, 60, 30), *SIZE) == OUTSIDE_BOX
    beyond = [[-30, 4, 20, 4, 20, 20]]  # what lies outside the image counts for nothing
    assert mask_fault(beyond, (0, 4, 20, 20), *SIZE) == ""
    rle = encode_mask(decode_mask(polygon, *SIZE))
    assert mask_fault(rle, tight, *SIZE) == ""
    assert mask_fault(rle, (31, 4, 58, 33), *SIZE) == OUTSIDE_BOX
    empty = encode_mask(np.zeros(SIZE, np.uint8))
    assert mask_fault(empty, tight, *SIZE) == OUTSIDE_BOX


def test_modern_polygons_are_rasterised_where_they_end_up():
    """Cropped at (-8, -5) to 30 x 50, then doubled in width and 1.5 times as high."""
    geometry = (SIZE, (-8, -5), (30, 50), (45, 100))
    moved = [(np.reshape(polygon, [-1, 2]) - (8, 5)) * (2, 1.5) for polygon in POLYGONS]
    expected = polygon_mask([p.reshape(-1).tolist() for p in moved], 45, 100)
    np.testing.assert_array_equal(training_mask(POLYGONS, *geometry, False), expected)
    np.testing.assert_array_equal(training_mask(POLYGONS, *geometry, True), expected[:, ::-1])
    # What a window cuts off takes nothing of the rest with it, but for pycocotools' rounding.
    around = polygon_mask([(p + 40).reshape(-1).tolist() for p in moved], 45 + 80, 100 + 80)
    assert around.sum() > expected.sum()
    assert (expected != around[40:-40, 40:-40]).sum() <= 0.005 * expected.sum()


@pytest.mark.parametrize("shift", [(-8, -5), (7, 3), (-8, 3)])
@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_bitmaps_move_and_take_the_nearest_pixel(mask, convention, shift):
    canvas_size, size = (45, 64), (57, 83)
    canvas = np.zeros((200, 200), np.uint8)
    canvas[50 + shift[1] : 90 + shift[1], 50 + shift[0] : 110 + shift[0]] = mask
    canvas = canvas[50:95, 50:114]
    half = 0.5 if convention == "modern" else 0.0
    rows, columns = (
        np.floor(np.float64(old / new) * (np.arange(new) + half) + 1e-9).astype(int)
        for new, old in zip(size, canvas_size)
    )
    expected = canvas[np.ix_(rows, columns)]
    for flip in (False, True):
        geometry = (SIZE, shift, canvas_size, size, flip, convention)
        read = training_mask(encode_mask(mask), *geometry)
        np.testing.assert_array_equal(read, expected[:, ::-1] if flip else expected)


def test_polygons_of_mmdet1_are_rasterised_before_they_are_resized():
    """As mmdetection: poly2mask at the size of the file, mmcv.imrescale, imflip."""
    size = (67, 101)
    nearest = cv2.resize(polygon_mask(POLYGONS, *SIZE), size[::-1], interpolation=cv2.INTER_NEAREST)
    read = training_mask(POLYGONS, SIZE, (0, 0), SIZE, size, True, "mmdet1")
    np.testing.assert_array_equal(read, nearest[:, ::-1])
    assert (read != training_mask(POLYGONS, SIZE, (0, 0), SIZE, size, True)).any()
