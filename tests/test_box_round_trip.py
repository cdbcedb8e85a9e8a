"""Truth -> target -> code -> boxes -> NMS -> COCO results: nothing is lost, in both conventions."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tiny_detector import tiny_detector

from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.config import DataConfig
from sepc_tf.data.pipeline import BatchPipeline
from sepc_tf.detectors import FSAF, FreeAnchor, RetinaNet
from sepc_tf.evaluation.coco import evaluate_detections, to_coco_results
from sepc_tf.evaluation.run import Evaluator
from sepc_tf.inference import detect_images
from sepc_tf.ops.boxes import pairwise_iou

CONVENTIONS = ["modern", "mmdet1"]
# (height, width): either side of the limit where the long side decides, both orientations, sides
# that resizing rounds up and down.
SIZES = [(60, 100), (60, 101), (75, 53), (47, 120), (64, 64)]
BOXES = [[8, 7, 16, 16], [20.25, 3.5, 30.5, 41], [0, 0, 40, 47]]  # x, y, width, height
OPTIONS = {"short_side": 83, "long_side": 150}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    content = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": f"{number}"} for number in (2, 4, 9)]
    for index, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
        content["images"].append(
            {"id": 7 + index, "file_name": f"{index}.png", "width": width, "height": height}
        )
        # And one that touches the image's far corner.
        for number, bbox in enumerate([*BOXES, [width - 30, height - 20.5, 30, 20.5]]):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 7 + index,
                    "category_id": (2, 4, 9)[number % 3],
                    "bbox": bbox,
                }
            )
    return CocoDataset.from_content(content, lambda name: (root / name).read_bytes, "made up")


def level_sizes(detector, images):
    height, width = images.shape[1:3]
    strides = detector.anchor_generator.strides
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def own_anchors(detector, batch):
    """Per image the rows of the anchors that predict its objects: the best one not yet taken."""
    anchors = tf.concat(detector.anchor_generator(level_sizes(detector, batch["images"])), 0)
    matches = np.full((len(batch["labels"]), len(anchors)), -1)
    for image, labels in enumerate(batch["labels"].numpy()):
        ious = pairwise_iou(batch["boxes"][image], anchors, detector.convention).numpy()
        for number in np.flatnonzero(labels >= 0):
            matches[image, np.where(matches[image] < 0, ious[number], -1).argmax()] = number
    return matches


def perfect_outputs(detector, batch, matches):
    """What a network says that has learnt by heart: exact codes and certain scores."""
    sizes = level_sizes(detector, batch["images"])
    anchors = tf.concat(detector.anchor_generator(sizes), 0)
    logits = np.full((*matches.shape, detector.num_classes), -20, np.float32)
    codes = np.zeros((*matches.shape, 4), np.float32)
    for image in range(len(matches)):
        rows = np.flatnonzero(matches[image] >= 0)
        objects = matches[image, rows]
        logits[image, rows, batch["labels"].numpy()[image, objects]] = 8
        if len(rows):
            boxes = tf.gather(batch["boxes"][image], objects)
            codes[image, rows] = detector.coder.encode(tf.gather(anchors, rows), boxes)
    outputs, start = {"classification": [], "box": []}, 0
    for height, width in sizes:
        count = height * width * detector.anchor_generator.anchors_per_cell
        for key, values in (("classification", logits), ("box", codes)):
            level = values[:, start : start + count].reshape(len(matches), height, width, -1)
            outputs[key].append(tf.constant(level))
        start += count
    return outputs


def results_of_the_truth(detector, dataset, matches_of=own_anchors, **options):
    pipeline = BatchPipeline(
        dataset, batch_size=2, training=False, convention=detector.convention, **options
    )
    results = []
    for batch in pipeline.for_epoch():
        outputs = perfect_outputs(detector, batch, matches_of(detector, batch))
        sizes = batch["image_sizes"], pipeline.frame_sizes(batch)
        found = detector.decode(outputs, *sizes)
        results += to_coco_results({**batch, **found}, dataset, detector.convention)
    return results


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("cls", [RetinaNet, FreeAnchor, FSAF])
def test_annotated_boxes_come_back_as_they_were(dataset, cls, convention):
    # An overlap of exactly 1 is not above the threshold: no object may suppress another.
    detector = tiny_detector(cls, convention=convention, nms_iou=1.0)
    results = results_of_the_truth(detector, dataset, **OPTIONS)
    truth = dataset.coco.dataset["annotations"]
    assert len(results) == len(truth)

    def ordered(entries):
        rows = [[e["image_id"], e["category_id"], *e["bbox"]] for e in entries]
        return np.array(sorted(rows, key=lambda row: [round(value, 1) for value in row]))

    np.testing.assert_allclose(ordered(results), ordered(truth), atol=2e-3)
    assert pytest.approx(1) == evaluate_detections(dataset, results).AP


@pytest.mark.slow
@pytest.mark.same_on_both_stacks
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_real_annotations_give_ap_1(coco128_dir, convention):
    dataset = CocoDataset.load(
        coco128_dir / "annotations" / "instances_train2017.json", coco128_dir / "train2017"
    )
    detector = tiny_detector(RetinaNet, num_classes=80, convention=convention, nms_iou=1.0)
    # Enlarged, as in the published setting: where images shrink, mmdet1's clipping to the last
    # pixel cuts boxes at the right and lower edge by up to (1 - scale) / scale pixels.
    results = results_of_the_truth(detector, dataset, short_side=640, long_side=1067)
    metrics = evaluate_detections(dataset, results)
    assert pytest.approx(1) == metrics.AP and metrics.APs == pytest.approx(1)


def test_mmdet1_rescales_before_nms(dataset):
    """By hand: 10 x 10 and 10 x 5 pixels overlap by 0.5; rescaled, the last pixel stays 1 wide."""
    boxes = tf.constant([[[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 4.0]]])
    scores = tf.constant([[[0.9, 0, 0], [0.8, 0, 0]]])
    for convention, scale, count in (
        ("mmdet1", 1.0, 2),  # 50 / 100
        ("mmdet1", 2.0, 2),  # 19 x 9 / 19 x 19
        ("mmdet1", 0.5, 1),  # 5.5 x 3 / 5.5 x 5.5
        ("modern", 0.5, 2),  # 4 / 9 at every scale
        ("modern", 2.0, 2),
    ):
        detector = tiny_detector(RetinaNet, convention=convention)
        detector.scored_boxes = lambda outputs, image_sizes: (boxes, scores)
        found = detector.decode(None, tf.constant([[32, 32]]), tf.constant([[32.0, 32.0]]) * scale)
        assert found["num_detections"].numpy() == [count], (convention, scale)
        np.testing.assert_allclose(found["boxes"][0, 0], [0, 0, 9 * scale, 9 * scale])


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_prediction_and_evaluation_give_equal_boxes(dataset, convention):
    """One image a batch, for the padding has to be the same; weights are random."""
    keras.utils.set_random_seed(1)
    detector = tiny_detector(RetinaNet, convention=convention, score_threshold=0.0)
    data = DataConfig(test_short_side=83, long_side=150)
    pipeline = BatchPipeline(
        dataset, batch_size=1, training=False, convention=convention, **OPTIONS
    )
    results = Evaluator(detector, dataset, pipeline).detections()
    for record in dataset.images:
        evaluated = [result for result in results if result["image_id"] == record.image_id]
        evaluated = np.array([[*r["bbox"], r["score"]] for r in evaluated])
        predicted = detect_images(detector, data, tf.constant(record.read()[None]))
        count = int(predicted["num_detections"][0])
        x1, y1, x2, y2 = predicted["boxes"][0, :count].numpy().T
        assert count == len(evaluated) == detector.max_detections
        boxes = np.stack([x1, y1, x2 - x1, y2 - y1, predicted["scores"][0, :count]], axis=1)
        np.testing.assert_allclose(boxes, evaluated, atol=1e-4)
