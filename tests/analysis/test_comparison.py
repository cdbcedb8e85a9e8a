import io
import json

import numpy as np
import pytest
from perturbed import perturbed_results, random_dataset

from sepc_tf.analysis.bootstrap import WeightedPrecision
from sepc_tf.analysis.comparison import compare_results
from sepc_tf.evaluation.coco import evaluate_detections

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture(scope="module")
def dataset():
    return random_dataset(9, images=30)


def test_the_interval_holds_the_middle_of_the_differences_on_drawn_images(dataset):
    first, second = perturbed_results(dataset, 0), perturbed_results(dataset, 3)
    found = compare_results(dataset, first, second, samples=40, seed=5)
    before, after = (evaluate_detections(dataset, results) for results in (first, second))
    rng, drawn = np.random.default_rng(5), []
    pair = [WeightedPrecision(dataset, results) for results in (first, second)]
    for _ in range(40):  # both runs on the same images
        numbers = rng.integers(0, len(dataset), len(dataset))
        weights = np.array([(numbers == k).sum() for k in range(len(dataset))], float)
        drawn.append(pair[1](weights)["AP50"] - pair[0](weights)["AP50"])
    item = next(item for item in found.differences if item.metric == "AP50")
    assert (item.low, item.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    assert (item.first, item.second) == pytest.approx((before.AP50, after.AP50))
    assert item.difference == pytest.approx(after.AP50 - before.AP50)
    assert item.low < item.difference < item.high and not item.clear
    assert found.per_class == {
        name: (before.per_class[name], after.per_class[name]) for name in dataset.class_names
    }
    json.dumps(found.to_dict())


def test_the_same_seed_gives_the_same_interval(dataset):
    first, second = perturbed_results(dataset, 0), perturbed_results(dataset, 1)
    once, twice, other = (
        compare_results(dataset, first, second, samples=20, seed=seed).differences
        for seed in (3, 3, 4)
    )
    assert once == twice and once != other


def test_a_clear_difference_is_marked_and_none_is_not(dataset):
    from rich.console import Console

    results = perturbed_results(dataset, 0)
    worse = [item for item in results if item["image_id"] % 2]
    for second, clear in ((worse, True), (results, False)):
        found = compare_results(dataset, results, second, samples=40)
        assert [item.clear for item in found.differences[:2]] == [clear, clear]
        console = Console(width=120, file=io.StringIO())
        console.print(found.table("runs/first", "runs/second"))
        assert ("*" in console.file.getvalue()) == clear
        assert "runs/second" in console.file.getvalue()
