"""hotcoco against pycocotools, and against cases whose errors are known."""

import sys

import numpy as np
import pytest
from error_case import DETECTIONS, OBJECTS, dataset_of, results_of
from perturbed import perturbed_results, random_dataset

from sepc_tf.errors import MissingPackageError
from sepc_tf.evaluation.coco import evaluate_detections

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture(scope="module")
def evaluation_of():
    pytest.importorskip("hotcoco", reason="needs the extra analysis")
    from sepc_tf.analysis.hot import hotcoco_evaluation

    return hotcoco_evaluation


@pytest.mark.parametrize("seed", range(6))
def test_the_twelve_numbers_are_pycocotools_(evaluation_of, seed):
    dataset = random_dataset(seed)
    results = perturbed_results(dataset, seed)
    evaluation = evaluation_of(dataset, results)
    evaluation.summarize()
    expected = list(evaluate_detections(dataset, results).summary.values())
    assert 0.1 < expected[0] < 0.9
    assert list(evaluation.stats) == expected


def test_each_error_is_of_its_kind(evaluation_of):
    dataset = dataset_of(OBJECTS)
    tide = evaluation_of(dataset, results_of(DETECTIONS)).tide_errors(pos_thr=0.5, bg_thr=0.1)
    # The better one of the two boxes on object 1 is right, the other is the duplicate.
    kinds = {"Bkg": 1, "Both": 1, "Cls": 1, "Dupe": 1, "Loc": 1, "Miss": 2}
    assert tide["counts"] == kinds, "missed: object 5, and object 4, which `Both` does not mend"


def test_what_mending_gains_is_what_pycocotools_measures_afterwards(evaluation_of):
    dataset = dataset_of(OBJECTS)
    tide = evaluation_of(dataset, results_of(DETECTIONS)).tide_errors(pos_thr=0.5, bg_thr=0.1)

    def ap50(detections, objects=OBJECTS):
        return evaluate_detections(dataset_of(objects), results_of(detections)).AP50

    def without(name):
        return {key: value for key, value in DETECTIONS.items() if key != name}

    before = ap50(DETECTIONS)
    assert tide["ap_base"] == pytest.approx(before)
    mended = {
        "Cls": ap50({**DETECTIONS, "Cls": (1, 7, [100, 0, 50, 50], 0.70)}),
        "Loc": ap50({**DETECTIONS, "Loc": (1, 3, [200, 0, 50, 50], 0.65)}),
        "Both": ap50(without("Both")),
        "Dupe": ap50(without("right")),  # the worse of the two
        "Bkg": ap50(without("Bkg")),
        "Miss": ap50(DETECTIONS, [item for item in OBJECTS if item["id"] not in (4, 5)]),
    }
    for kind, after in mended.items():
        assert tide["delta_ap"][kind] == pytest.approx(after - before), kind
    assert min(tide["delta_ap"][kind] for kind in mended) >= 0
    assert sum(tide["delta_ap"][kind] > 0.01 for kind in mended) >= 4, "the case tells them apart"


@pytest.mark.parametrize("seed", range(3))
def test_calibration_is_that_of_pycocotools_matches(evaluation_of, seed):
    from sepc_tf.analysis.matches import match

    dataset = random_dataset(seed)
    results = perturbed_results(dataset, seed)
    found = evaluation_of(dataset, results).calibration(n_bins=10, iou_threshold=0.5)
    matches = match(dataset, results)
    bins = np.minimum((matches.scores * 10).astype(int), 9)
    gaps = [
        abs(matches.right[bins == k].mean() - matches.scores[bins == k].mean()) * (bins == k).sum()
        for k in np.unique(bins)
    ]
    assert found["num_detections"] == len(bins)
    assert [item["count"] for item in found["bins"]] == np.bincount(bins, minlength=10).tolist()
    assert found["ece"] == pytest.approx(sum(gaps) / len(bins))


def test_nothing_detected(evaluation_of):
    evaluation = evaluation_of(dataset_of(OBJECTS), [])
    assert evaluation.tide_errors()["counts"]["Miss"] == 6
    assert evaluation.calibration()["ece"] == 0


def test_only_the_images_of_the_data_set_count(evaluation_of):
    dataset = dataset_of(OBJECTS).first(1)
    results = [item for item in results_of(DETECTIONS) if item["image_id"] == 1]
    before = evaluate_detections(dataset, results).AP50
    assert evaluation_of(dataset, results).tide_errors()["ap_base"] == pytest.approx(before)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    from sepc_tf.analysis.hot import hotcoco

    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(MissingPackageError, match="pip install hotcoco"):
        hotcoco()
