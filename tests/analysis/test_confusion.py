import pytest
from error_case import DETECTIONS, OBJECTS, dataset_of, results_of
from perturbed import perturbed_results, random_dataset

from sepc_tf.analysis.confusion import confusion_matrix
from sepc_tf.analysis.matches import match

pytestmark = pytest.mark.same_on_both_stacks

pytest.importorskip("hotcoco", reason="needs the extra analysis")


def counted(dataset, results):
    return [results[index] for index in match(dataset, results).index]


def test_a_case_made_by_hand():
    dataset = dataset_of(OBJECTS)
    results = counted(dataset, results_of(DETECTIONS))
    assert len(results) == len(DETECTIONS) - 1, "the one on a crowd does not count"
    assert confusion_matrix(dataset, results, 0.0).tolist() == [
        [1, 0, 2],  # objects 3 and 5 not found
        [1, 1, 1],  # object 2 taken for an ant, object 4 not found
        [3, 1, 0],  # on nothing: the duplicate, and those in the wrong place; background
    ]
    assert confusion_matrix(dataset, results, 0.68).tolist() == [[1, 0, 2], [1, 0, 2], [1, 1, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_every_object_and_every_detection_stands_in_it_once(seed):
    dataset = random_dataset(seed)
    results = counted(dataset, perturbed_results(dataset, seed))
    matrix = confusion_matrix(dataset, results, 0.4)
    for label, number in enumerate(dataset.category_ids):
        objects = [
            item
            for item in dataset.coco.anns.values()
            if item["category_id"] == number and not item["iscrowd"]
        ]
        detections = [
            item for item in results if item["category_id"] == number and item["score"] >= 0.4
        ]
        assert matrix[label].sum() == len(objects)
        assert matrix[:, label].sum() == len(detections)
    assert matrix[-1, -1] == 0 and matrix.trace() > 0
