"""The whole way of an evaluation, with a detector that knows the truth: it has to reach AP 1."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.pipeline import BatchPipeline
from sepc_tf.data.segmentations import decode_mask
from sepc_tf.evaluation.coco import evaluate_detections
from sepc_tf.evaluation.run import Evaluator

SIZES = [(50, 80), (50, 90), (80, 50), (64, 64), (50, 80), (50, 81), (70, 50)]  # height, width
IMAGE_IDS = [900, 4, 77, 12, 500, 2, 81]
CATEGORY_IDS = [3, 18]


def box_of(index):
    return [3.5 + index, 5, 30 + 2 * index, 33.25]  # xyxy


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Seven images, each told by its grey level, with one object."""
    root = tmp_path_factory.mktemp("grey")
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": number, "name": str(number)} for number in CATEGORY_IDS]
    for index, (height, width) in enumerate(SIZES):
        Image.new("RGB", (width, height), (20 * index,) * 3).save(root / f"{index}.png")
        content["images"].append(
            {"id": IMAGE_IDS[index], "file_name": f"{index}.png", "width": width, "height": height}
        )
        x1, y1, x2, y2 = box_of(index)
        content["annotations"].append(
            {
                "id": index + 1,
                "image_id": IMAGE_IDS[index],
                "category_id": CATEGORY_IDS[index % 2],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
            }
        )
    return CocoDataset.from_content(content, lambda name: (root / name).read_bytes, "grey")


class Oracle:
    """Answers with the box of the image whose grey level it sees, if it is told its size."""

    convention = "modern"
    needs_masks = True

    def detect(self, images, image_sizes, original_sizes):
        index = tf.cast(tf.round(images[:, 0, 0, 0] / 20.0), tf.int32)
        boxes = tf.gather(tf.constant([box_of(i) for i in range(len(SIZES))], tf.float32), index)
        original = tf.gather(tf.constant(SIZES, tf.float32), index)
        scale = tf.cast(original_sizes, tf.float32) / original
        boxes *= tf.gather(scale, [1, 0, 1, 0], axis=1)
        padding = tf.zeros_like(boxes)
        return {
            "boxes": tf.stack([boxes, padding], axis=1),
            "scores": tf.stack([tf.ones_like(boxes[:, 0]), padding[:, 0]], axis=1),
            "classes": tf.stack([index % 2, tf.fill(tf.shape(index), -1)], axis=1),
            "num_detections": tf.ones_like(index),
            "masks": tf.ones([tf.shape(index)[0], 2, 28, 28]),
        }


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_known_truth_gives_ap_1_in_original_pixels(dataset, two_replicas, replicas, batch_size):
    strategy = two_replicas if replicas == 2 else None
    pipeline = BatchPipeline(
        dataset,
        batch_size=batch_size,
        training=False,
        short_side=100,
        long_side=150,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    evaluator = Evaluator(Oracle(), dataset, pipeline, strategy)
    results = evaluator.detections()
    # Every image once, although the last batches are filled up with repeated ones.
    assert sorted(result["image_id"] for result in results) == sorted(IMAGE_IDS)
    for result in results:
        index = IMAGE_IDS.index(result["image_id"])
        x1, y1, x2, y2 = box_of(index)
        np.testing.assert_allclose(result["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=1e-4)
        assert result["category_id"] == CATEGORY_IDS[index % 2]
        mask = decode_mask(result["segmentation"], *SIZES[index])
        rows, columns = (np.arange(side) + 0.5 for side in SIZES[index])
        inside = np.outer((rows > y1) & (rows < y2), (columns > x1) & (columns < x2))
        sure = columns != x1  # float32 decides whether a pixel's centre on the side is inside
        np.testing.assert_array_equal(mask[:, sure], inside[:, sure])
    metrics = evaluate_detections(dataset, results)
    assert pytest.approx(1) == metrics.AP
    assert metrics.per_class == pytest.approx({"3": 1.0, "18": 1.0})
    if replicas == 1 and batch_size == 4:  # once: the graph is traced already
        logged = evaluator.evaluate_and_log(tf.summary.create_noop_writer(), step=3)
        assert pytest.approx(1) == logged["AP"] and logged["segm/AP"] > 0.8
        assert all(np.isscalar(value) for value in logged.values())
        # Of a grey picture the pixels of the masks have their class's colour, on both sides.
        picture = evaluator.pictures(results)[0].astype(int)
        tinted = np.ptp(picture, axis=-1) > 20
        assert tinted[:, : picture.shape[1] // 2].mean() > 0.15
        assert tinted[:, picture.shape[1] // 2 :].mean() > 0.15
