"""Our evaluation against pycocotools, used directly, on random truth and random detections."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sepc_tf.data.coco import CocoDataset
from sepc_tf.evaluation.coco import METRIC_NAMES, evaluate_detections

pytestmark = pytest.mark.reliability


def random_boxes(rng, count):
    sides = np.exp(rng.uniform(np.log(2), np.log(250), (count, 2)))
    return np.concatenate([rng.uniform(0, 300, (count, 2)), sides], axis=1).round(2)


def random_case(rng):
    """Truth with crowds, other areas than the boxes', empty images and classes; detections of it
    and of nothing, with ties among their scores."""
    images = [
        {"id": int(number), "file_name": f"{number}.jpg", "width": 600, "height": 600}
        for number in rng.choice(1000, rng.integers(1, 8), replace=False)
    ]
    categories = [
        {"id": int(number), "name": f"class {number}"}
        for number in rng.choice(90, rng.integers(1, 6), replace=False)
    ]
    annotations, results = [], []
    for image in images:
        for box in random_boxes(rng, rng.choice([0, 1, 4, 12])):
            area = box[2] * box[3] * rng.choice([1.0, 0.5])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice([c["id"] for c in categories][:3])),
                    "bbox": box.tolist(),
                    "area": float(area),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    for _ in range(rng.choice([0, 5, 60, 300])):
        if annotations and rng.random() < 0.7:
            truth = annotations[rng.integers(len(annotations))]
            image_id, category_id = truth["image_id"], truth["category_id"]
            box = np.array(truth["bbox"]) * rng.normal(1, 0.15, 4).clip(0.5, 1.5)
        else:
            image_id = images[rng.integers(len(images))]["id"]
            category_id = categories[rng.integers(len(categories))]["id"]
            [box] = random_boxes(rng, 1)
        results.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box.tolist(),
                "score": float(rng.choice([rng.random(), 0.25, 0.5, 0.75])),
            }
        )
    return {"images": images, "annotations": annotations, "categories": categories}, results


def directly(content, results):
    """(the twelve numbers, AP per category id) of pycocotools alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        numbers = list(evaluation.stats)
        per_class = {}
        for category in content["categories"]:
            evaluation.params.catIds = [category["id"]]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            per_class[category["name"]] = evaluation.stats[0]
    return numbers, per_class


def test_random_evaluations_equal_pycocotools(tries, figures):
    rng = np.random.default_rng(0)
    equal = measurable = 0
    for _ in range(tries(40)):
        content, results = random_case(rng)
        dataset = CocoDataset.from_content(content, lambda name: None, "random")
        metrics = evaluate_detections(dataset, results)
        if results:
            numbers, per_class = directly(content, results)
        else:  # what `loadRes` cannot take: nothing is found of what is there
            some = any(not annotation["iscrowd"] for annotation in content["annotations"])
            numbers, per_class = [0 if some else -1], None
        measurable += numbers[0] > 0
        same = [getattr(metrics, name) for name in METRIC_NAMES][: len(numbers)] == numbers
        if per_class is not None:
            ours = {name: -1 if ap is None else ap for name, ap in metrics.per_class.items()}
            same = same and ours == per_class
        equal += same
    assert measurable > 10, "cases in which something is found"
    figures("evaluations equal to pycocotools", tries(40), equal)
