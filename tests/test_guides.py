"""The guides of docs/guides run as they are shown."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import sepc_tf
from sepc_tf import runs
from sepc_tf.checkpoints.variables import named_variables, read_variables
from sepc_tf.data.demo import CATEGORY_NAMES
from sepc_tf.files import write_json
from sepc_tf.training.checkpoints import read_checkpoint, write_checkpoint

GUIDES = Path(__file__).parents[1] / "docs/guides"


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """Runs a guide in an empty folder; returns its names."""
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(GUIDES / f"{name}.py"))


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory):
    """A stand-in for the packaged model: its detector with random weights."""
    folder = tmp_path_factory.mktemp("demo_model")
    config = sepc_tf.load_config("demo_sepc_lite", ["detector.score_threshold=0.001"])
    runs.prepare_run_dir(folder, config)
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(CATEGORY_NAMES)]
    write_json(folder / "categories.json", categories)
    detector = sepc_tf.build_detector(config.detector, num_classes=10)
    arrays = {f"model/{k}": v for k, v in read_variables(named_variables(detector)).items()}
    (folder / "checkpoints").mkdir()
    write_checkpoint(folder / "checkpoints/best.npz", arrays, {"step": 1})
    return folder


def test_own_model(guide):
    names = guide("own_model")
    assert names["found"] > len(names["images"]) / 2


@pytest.mark.same_on_both_stacks
def test_fine_tune(guide, demo_model, monkeypatch):
    monkeypatch.setitem(runs.PACKAGED_RUNS, "demo", demo_model)
    guide("fine_tune")
    assert [c["name"] for c in runs.read_categories("runs/mine")] == ["round", "angular"]
    start = read_checkpoint(demo_model / "checkpoints/best.npz")[0]
    after = read_checkpoint("runs/mine/checkpoints/best.npz")[0]
    kernel = "model/backbone/layer4_1/conv2/kernel"
    change = np.abs(after[kernel] - start[kernel]).max() / np.abs(start[kernel]).max()
    assert 0 < change < 0.5, "it started from the given weights and trained them"


@pytest.mark.same_on_both_stacks
def test_serve(guide, demo_model, monkeypatch):
    monkeypatch.setitem(runs.PACKAGED_RUNS, "demo", demo_model)
    assert guide("serve")["count"] > 0


def test_every_guide_is_run():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in GUIDES.glob("*.py")} <= tests
