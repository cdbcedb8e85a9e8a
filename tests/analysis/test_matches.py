import numpy as np
import pytest
from perturbed import perturbed_results, random_dataset

from sepc_tf.analysis.matches import f1_curve, match, precision_curves
from sepc_tf.evaluation.coco import accumulated, detections_as_coco, evaluate_detections

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture(scope="module")
def dataset():
    return random_dataset()


@pytest.fixture(scope="module")
def results(dataset):
    return perturbed_results(dataset)


def test_every_point_is_what_pycocotools_recalls_of_what_passes_the_threshold(dataset, results):
    matches = match(dataset, results)
    curve = f1_curve(matches)
    assert len(curve.thresholds) == len(np.unique(matches.scores))
    crowds = [item["iscrowd"] for item in dataset.coco.anns.values()]
    assert sum(crowds) and matches.objects.sum() == len(crowds) - sum(crowds)
    for index in (3, len(curve.f1) // 2, len(curve.f1) - 1):
        passing = [item for item in results if item["score"] >= curve.thresholds[index]]
        evaluation = accumulated(
            dataset, detections_as_coco(dataset, passing), iouThrs=np.array([0.5])
        )
        recall = evaluation.eval["recall"][0, :, 0, -1]  # of each class
        found = (recall * matches.objects).sum()
        assert curve.recall[index] == pytest.approx(found / matches.objects.sum())
        counted = (matches.scores >= curve.thresholds[index]).sum()
        assert curve.precision[index] == pytest.approx(found / counted)
    harmonic = 2 * curve.precision * curve.recall / (curve.precision + curve.recall)
    np.testing.assert_allclose(curve.f1, harmonic)
    assert curve.best["f1"] == curve.f1.max() and 0 < curve.best["threshold"] < 1


def test_a_class_alone_has_its_own_objects_and_detections(dataset, results):
    matches = match(dataset, results)
    parts = [matches.of_class(label) for label in range(dataset.num_classes)]
    assert sum(len(part.scores) for part in parts) == len(matches.scores)
    assert [part.objects.sum() for part in parts] == matches.objects.tolist()
    only = [item for item in results if item["category_id"] == dataset.category_ids[1]]
    np.testing.assert_array_equal(match(dataset, only).right, parts[1].right)


def test_detections_of_equal_score_pass_together():
    dataset = random_dataset(1, images=3)
    results = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "score": 0.5,
        }
        for a in dataset.coco.anns.values()
        if not a["iscrowd"]
    ]
    curve = f1_curve(match(dataset, results))
    assert curve.thresholds.tolist() == [0.5] and curve.f1.tolist() == [1.0]


def test_the_mean_of_a_curve_is_the_average_precision(dataset, results):
    metrics = evaluate_detections(dataset, results, [0.9])
    recalls, precision = precision_curves(dataset, results, (0.5, 0.75, 0.9))
    assert recalls[0] == 0 and recalls[-1] == 1
    means = precision.mean(axis=(1, 2))
    assert means.tolist() == pytest.approx([metrics.AP50, metrics.AP75, metrics.at_iou["mAP@0.9"]])


def test_nothing_detected_has_no_best_point(dataset):
    assert f1_curve(match(dataset, [])).best is None
