"""Exported models beside each other, in numbers, as a table and as a picture."""

import time

import numpy as np
import pytest

from sepc_tf import cli
from sepc_tf.benchmark import draw_exported, exported, exported_markdown
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.demo import CATEGORY_NAMES, make_demo_dataset

pytestmark = pytest.mark.same_on_both_stacks


class Slow:
    """Knows the truth of the first image, and takes its time."""

    def __init__(self, path):
        self.seconds = float(path.stem.rpartition("_")[2]) / 1e3
        self.categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORY_NAMES)]

    def detect(self, images):
        time.sleep(self.seconds)
        nothing = {"boxes": np.zeros([1, 1, 4]), "scores": np.zeros([1, 1])}
        return {**nothing, "classes": np.full([1, 1], -1), "num_detections": np.zeros(1, np.int32)}


def test_sizes_times_and_ap(tmp_path, monkeypatch):
    data = make_demo_dataset(tmp_path / "data", train_images=0, val_images=2)
    dataset = CocoDataset.load(data / "annotations/instances_val.json", data / "val")
    monkeypatch.setattr(exported, "ExportedModel", Slow)
    (tmp_path / "folder_10/variables").mkdir(parents=True)
    (tmp_path / "folder_10/variables/a").write_bytes(bytes(3_000_000))
    (tmp_path / "folder_10/categories.json").write_bytes(bytes(1_000_000))
    (tmp_path / "file_40.onnx").write_bytes(bytes(1_500_000))
    files = [
        ("saved_model", "float32", tmp_path / "folder_10"),
        ("onnx", "int8", tmp_path / "file_40.onnx"),
    ]
    report = exported.exported_speed(files, dataset, num_images=2, repeats=3)
    first, second = report["rows"]
    assert (first["mb"], second["mb"]) == (3.0, 1.5)
    assert first["ms"] >= 10 and second["ms"] >= 40 and 1.5 < second["ratio"] < 6
    assert first["ratio"] == 1.0 and first["AP"] == second["AP"] == 0.0
    assert exported_markdown(report).splitlines()[-1].endswith("| 0.0 | 0.0 | 0.0 |")
    pytest.importorskip("matplotlib")
    draw_exported(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export"], "benchmark export needs --run-dir"),
        (["export", "--run-dir", "r", "--precisions", "int4"], "no format has int4"),
        (["export", "--run-dir", "r", "--formats", "coreml"], "format: expected one of"),
        (["export", "--run-dir", "r", "--warmup", "3"], "--warmup does not apply to benchmark exp"),
        (["export", "--run-dir", "r", "--times-only", "--picture", "p"], "--picture shows AP"),
        (["detector"], "needs --config NAME..., or --table"),
        (["detector", "--table", "--batch", "1", "2"], "--batch: expected one number, got 1 2"),
        (["roi-align", "a=1"], "a=1 does not apply to benchmark roi-align"),
    ],
)
def test_options_that_do_not_fit_are_named(capsys, arguments, message):
    assert cli.main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err
