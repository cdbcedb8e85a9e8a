"""Two evaluations and two exports at once, into the same place."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf

from sepc_tf.data.sources import evaluation_pipeline, load_split
from sepc_tf.evaluation.run import evaluate_run
from sepc_tf.export import export
from sepc_tf.files import read_json
from sepc_tf.runs import load_run

pytestmark = pytest.mark.reliability


def test_two_evaluations_and_two_exports(whole, tmp_path, figures):
    runs = [load_run(whole, "best"), load_run(whole, "best")]
    dataset = load_split(runs[0].config.data, "val")
    pipelines = [evaluation_pipeline(dataset, run.config, run.batch_size) for run in runs]
    out = tmp_path / "evaluation"
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(evaluate_run, runs, [dataset] * 2, pipelines, [out] * 2)
    [entry] = read_json(whole / "history.json")
    assert first == second
    assert read_json(out / "metrics.json") == first.to_dict()
    assert {name: entry[name] for name in first.summary} == first.summary
    written = ["detections.json", "metrics.json", "origin.json"]
    assert sorted(path.name for path in out.iterdir()) == written
    figures("two evaluations at once", 2, 2)

    place = tmp_path / "exports/model"
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(export, runs, [place] * 2)) == [place, place]
    assert [path.name for path in place.parent.iterdir()] == ["model"]
    assert read_json(place / "categories.json") == runs[0].categories
    serve = tf.saved_model.load(str(place)).signatures["serving_default"]
    assert serve(images=tf.zeros([1, 40, 60, 3], tf.uint8))["boxes"].shape[0] == 1
    figures("two exports at once", 2, 2)
