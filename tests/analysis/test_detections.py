"""When the detections of an earlier evaluation are taken, and when the run is evaluated."""

import json

import pytest
from tiny_run import tiny_config

from sepc_tf import cli
from sepc_tf.analysis import detections
from sepc_tf.analysis.detections import run_detections
from sepc_tf.checkpoints.variables import named_variables, read_variables
from sepc_tf.data.categories import categories_of
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.data.sources import load_split
from sepc_tf.evaluation.coco import evaluate_detections
from sepc_tf.files import write_json
from sepc_tf.runs import prepare_run_dir
from sepc_tf.training.checkpoints import write_checkpoint
from sepc_tf.zoo import build_detector

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of a detector that was not trained, which finds boxes all the same."""
    data = make_demo_dataset(tmp_path_factory.mktemp("demo") / "data", 1, val_images=3)
    config = tiny_config(
        data, "detector.score_threshold=0.0", "detector.max_detections=20",
        "evaluation.iou_thresholds=[0.1]",
    )  # fmt: skip
    run_dir = prepare_run_dir(tmp_path_factory.mktemp("runs") / "tiny", config)
    categories = categories_of(load_split(config.data, "val"))
    write_json(run_dir / "categories.json", categories)
    detector = build_detector(config.detector, num_classes=len(categories))
    arrays = read_variables(named_variables(detector))
    model = {f"model/{name}": array for name, array in arrays.items()}
    write_checkpoint(run_dir / "checkpoints/best.npz", model, {"step": 3})
    return run_dir


class Evaluated(Exception):
    pass


@pytest.fixture
def no_evaluation(monkeypatch):
    def load_run(*arguments):
        raise Evaluated

    monkeypatch.setattr(detections, "load_run", load_run)


@pytest.fixture(scope="module")
def evaluated(run_dir):
    """What `sepc-tf evaluate` left."""
    assert cli.main(["evaluate", "--run-dir", str(run_dir), "--iou", "0.33", "--iou", "0.25"]) == 0
    return run_dir


def test_evaluate_reports_the_overlaps_asked_for(evaluated):
    metrics = json.loads((evaluated / "evaluation/metrics.json").read_text())
    results = json.loads((evaluated / "evaluation/detections.json").read_text())
    assert len(results) == 3 * 20
    dataset, _ = run_detections(evaluated)
    expected = evaluate_detections(dataset, results, [0.33, 0.25])
    assert metrics == expected.to_dict()
    assert list(expected.at_iou) == ["mAP@0.33", "mAP@0.25"], "in place of the config's"


def test_detections_that_are_up_to_date_are_taken(evaluated, no_evaluation, tmp_path):
    dataset, results = run_detections(evaluated)
    assert len(dataset) == 3
    assert results == json.loads((evaluated / "evaluation/detections.json").read_text())
    # The number of epochs and where the data is do not matter.
    moved = (tmp_path / "data").resolve()
    moved.symlink_to(dataset.name.split("/annotations")[0])
    assert run_detections(evaluated, overrides=[f"data.directory={moved}", "train.epochs=99"])[1]


def test_other_settings_weights_or_data_are_evaluated_anew(evaluated, no_evaluation, tmp_path):
    for override in ("detector.nms_iou=0.6", "data.test_short_side=32"):
        with pytest.raises(Evaluated):
            run_detections(evaluated, overrides=[override])
    data = make_demo_dataset(tmp_path / "other", 0, val_images=3, seed=1)
    with pytest.raises(Evaluated):
        run_detections(evaluated, overrides=[f"data.directory={data}"])
    best = evaluated / "checkpoints/best.npz"
    (tmp_path / "best.npz").write_bytes(best.read_bytes() + b"x")
    with pytest.raises(Evaluated):
        run_detections(evaluated, checkpoint=tmp_path / "best.npz")


def test_damaged_or_missing_records_are_no_detections(evaluated, no_evaluation):
    origin = evaluated / "evaluation/origin.json"
    text = origin.read_text()
    try:
        for damaged in ("", "[]", text[:-9]):
            origin.write_text(damaged)
            with pytest.raises(Evaluated):
                run_detections(evaluated)
    finally:
        origin.write_text(text)


def test_the_commands_analyze_and_compare(evaluated, no_evaluation, tmp_path, capsys):
    pytest.importorskip("hotcoco", reason="needs the extra analysis")
    out = tmp_path / "out"
    arguments = ["--run-dir", str(evaluated), "--out", str(out), "--worst", "1"]
    assert cli.main(["analyze", *arguments]) == 0
    assert "analysis.html" in capsys.readouterr().out
    report = json.loads((out / "analysis.json").read_text())
    assert "mAP@0.1" in report["metrics"] and report["title"] == str(evaluated)

    report = tmp_path / "comparison.json"
    runs = [str(evaluated)] * 2
    assert cli.main(["compare", *runs, "--samples", "5", "--json", str(report)]) == 0
    assert "5 bootstrap samples" in capsys.readouterr().out
    differences = json.loads(report.read_text())["differences"]
    assert differences and all(item["low"] == item["high"] == 0 for item in differences)
