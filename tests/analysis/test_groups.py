import math

import pytest
from perturbed import perturbed_results, random_dataset

from sepc_tf.analysis.groups import ap_by, ap_by_aspect, ap_by_count, ap_by_size
from sepc_tf.data.coco import CocoDataset
from sepc_tf.evaluation.coco import evaluate_detections

pytestmark = pytest.mark.same_on_both_stacks


def test_coco_s_own_sizes_give_coco_s_numbers():
    dataset = random_dataset(2)
    results = perturbed_results(dataset, 2)
    groups = ap_by(dataset, results, lambda item, _: math.sqrt(item["area"]), (0, 32, 96, math.inf))
    metrics = evaluate_detections(dataset, results)
    assert [group.ap for group in groups] == [metrics.APs, metrics.APm, metrics.APl]
    assert [group.name for group in groups] == ["below 32", "32 to 96", "from 96"]
    objects = [item for item in dataset.coco.anns.values() if not item["iscrowd"]]
    assert sum(group.objects for group in groups) == len(objects)
    fine = ap_by_size(dataset, results)
    assert sum(group.objects for group in fine) == len(objects)


def by_hand():
    """One image with a wide object, one with a tall one and two square ones, an empty one."""
    boxes = [(1, [10, 10, 120, 20]), (2, [0, 0, 10, 90]), (2, [50, 0, 40, 40]), (2, [0, 95, 5, 5])]
    content = {
        "images": [{"id": n, "file_name": f"{n}", "width": 200, "height": 100} for n in (1, 2, 3)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3]}
            for i, (image, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    return CocoDataset.from_content(content, lambda name: None, "by hand")


def found(image_id, bbox, score=0.9):
    return {"image_id": image_id, "category_id": 1, "bbox": bbox, "score": score}


def test_shapes_and_counts_of_a_case_made_by_hand():
    dataset = by_hand()
    results = [
        found(1, [10, 10, 120, 20]),
        found(2, [50, 0, 40, 40]),
        found(1, [100, 60, 80, 10], 0.95),  # wide, on nothing
        found(3, [0, 0, 30, 30], 0.99),  # square, where there is nothing
    ]
    shapes = {group.name: group for group in ap_by_aspect(dataset, results)}
    assert {name: group.objects for name, group in shapes.items()} == {
        "below 0.33": 1,
        "0.67 to 1.5": 2,
        "from 3": 1,
    }
    assert shapes["below 0.33"].ap == 0
    # Behind one false detection of the same shape each; half of the square ones are found.
    assert shapes["from 3"].ap50 == pytest.approx(0.5)
    assert shapes["0.67 to 1.5"].ap50 == pytest.approx(0.5 * 51 / 101)
    counts = {group.name: group for group in ap_by_count(dataset, results)}
    assert {name: group.objects for name, group in counts.items()} == {"1": 1, "2 to 3": 3}
    assert counts["1"].ap50 == pytest.approx(0.5)
    assert counts["2 to 3"].ap50 == pytest.approx(34 / 101)
    assert [a["area"] for a in dataset.coco.anns.values()] == [2400, 900, 1600, 25], "unchanged"
