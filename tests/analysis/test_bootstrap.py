"""Weighted images against pycocotools' own accumulation over images drawn one by one."""

import contextlib
import io

import numpy as np
import pytest
from perturbed import perturbed_results, random_dataset

from sepc_tf.analysis.bootstrap import METRICS, WeightedPrecision
from sepc_tf.evaluation.coco import accumulated, detections_as_coco, evaluate_detections

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture(scope="module")
def dataset():
    return random_dataset(9, images=30)


@pytest.fixture(scope="module")
def results(dataset):
    return perturbed_results(dataset, 9)


def test_every_image_once_gives_the_metrics(dataset, results):
    found = WeightedPrecision(dataset, results)(np.ones(len(dataset)))
    metrics = evaluate_detections(dataset, results).summary
    assert found == pytest.approx({name: metrics[name] for name in METRICS}, abs=1e-12)


def test_drawn_images_give_what_pycocotools_accumulates(dataset, results):
    precision = WeightedPrecision(dataset, results)
    evaluation = accumulated(dataset, detections_as_coco(dataset, results))
    entries = np.empty(len(evaluation.evalImgs), object)
    entries[:] = evaluation.evalImgs
    entries = entries.reshape(-1, len(dataset))
    rng = np.random.default_rng(0)
    for _ in range(4):
        drawn = rng.integers(0, len(dataset), len(dataset))
        evaluation.evalImgs = list(entries[:, drawn].ravel())
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
            evaluation.summarize()
        found = precision(np.bincount(drawn, minlength=len(dataset)).astype(float))
        assert list(found.values()) == pytest.approx(list(evaluation.stats[:6]), abs=1e-12)


def test_images_that_do_not_count_are_as_if_they_were_not_there(dataset, results):
    first = dataset.first(12)
    ids = {image.image_id for image in first.images}
    kept = [item for item in results if item["image_id"] in ids]
    weights = (np.arange(len(dataset)) < 12).astype(float)
    found = WeightedPrecision(dataset, results)(weights)
    assert found == pytest.approx(WeightedPrecision(first, kept)(np.ones(12)), abs=1e-12)


def test_without_objects_there_is_no_precision(dataset, results):
    weights = np.zeros(len(dataset))
    weights[-1] = 3  # the empty image
    assert set(WeightedPrecision(dataset, results)(weights).values()) == {None}
