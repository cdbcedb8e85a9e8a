import dataclasses
import io

import numpy as np
import pytest
from perturbed import random_dataset
from PIL import Image

from sepc_tf.analysis.worst import draw_errors, worst_images
from sepc_tf.visualization import MIN_PICTURE_SIDE

pytestmark = pytest.mark.same_on_both_stacks

pytest.importorskip("hotcoco", reason="needs the extra analysis")


def truth(dataset, image, score=0.9):
    return [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "score": score,
        }
        for a in dataset.coco.imgToAnns[image.image_id]
        if not a["iscrowd"]
    ]


def with_pixels(dataset):
    file = io.BytesIO()
    Image.new("RGB", (300, 300), "grey").save(file, "PNG")
    images = tuple(
        dataclasses.replace(image, read_bytes=file.getvalue if image.image_id != 12 else failing)
        for image in dataset.images
    )
    return dataclasses.replace(dataset, images=images)


def failing():
    raise OSError(2, "No such file")


def test_the_worst_come_first_and_perfect_images_are_left_out():
    dataset = with_pixels(random_dataset(3, images=6))
    perfect, missed, half, *_ = dataset.images
    empty = dataset.images[-1]
    box = [5.0, 5.0, 40.0, 40.0]
    results = [item for image in dataset.images for item in truth(dataset, image)]
    of_missed = [item for item in results if item["image_id"] == missed.image_id]
    of_half = [item for item in results if item["image_id"] == half.image_id]
    results = [item for item in results if item not in of_missed and item is not of_half[0]]
    results += [
        {"image_id": empty.image_id, "category_id": 9, "bbox": box, "score": 0.8},
        {"image_id": perfect.image_id, "category_id": 9, "bbox": box, "score": 0.3},  # too low
        {**of_missed[0], "score": 0.2},
    ]
    worst = worst_images(dataset, results, threshold=0.5)
    assert [item.image.image_id for item in worst] == [
        missed.image_id,
        empty.image_id,
        half.image_id,
    ]
    assert (worst[0].f1, worst[0].right, worst[0].missed) == (0, 0, len(of_missed))
    assert sum(worst[0].missed_names.values()) == len(of_missed) and not worst[0].false_names
    assert worst[1].caption == "0 right; false: 1 cat"
    kept = len(of_half) - 1
    assert worst[2].f1 == pytest.approx(2 * kept / (2 * kept + 1))
    assert worst_images(dataset, results, 0.5, count=1) == worst[:1]

    picture = draw_errors(dataset, worst[0])
    assert picture.dtype == np.uint8 and picture.shape[1] > 2 * MIN_PICTURE_SIDE
    assert worst[2].image.image_id == 12 and draw_errors(dataset, worst[2]) is None
