"""A whole training: what it leaves behind, what it refuses, what it puts back."""

import copy
import json
import resource
import shutil
import signal

import keras
import pytest
from tensorflow.python.framework import config as framework_config
from tiny_run import tiny_config

from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.errors import ConfigError, DatasetError, OutputError
from sepc_tf.evaluation.run import Evaluator
from sepc_tf.runs import lock_run_dir, prepare_run_dir
from sepc_tf.train import train
from sepc_tf.training.checkpoints import read_checkpoint, step_files

METRICS = {"AP": 0.25, "AP50": 0.5, "AP75": 0.125}


def process_state():
    policy = keras.mixed_precision.global_policy().name
    deterministic = framework_config.is_op_determinism_enabled()
    return policy, deterministic, signal.getsignal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def nothing_outlives_a_training():
    before = process_state()
    yield
    assert process_state() == before


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_dataset(tmp_path_factory.mktemp("demo") / "data", train_images=8, val_images=4)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of one epoch, and what `train` returned."""
    run_dir = tmp_path_factory.mktemp("runs") / "one_epoch"
    config = tiny_config(
        data,
        "train.epochs=1",
        "train.deterministic=true",
        "train.mixed_precision=mixed_bfloat16",
        "evaluation.iou_thresholds=[0.33]",
    )
    return run_dir, config, train(config, run_dir)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run to go on with: (directory, config)."""
    run_dir, config, _ = trained
    return shutil.copytree(run_dir, tmp_path / "run"), copy.deepcopy(config)


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_a_training_leaves_behind(trained):
    run_dir, _, history = trained
    assert [entry["epoch"] for entry in history] == [1]
    assert json.loads((run_dir / "history.json").read_text()) == history
    assert 0 <= history[0]["AP50"] <= history[0]["mAP@0.33"]
    assert len(json.loads((run_dir / "categories.json").read_text())) == 10
    data = json.loads((run_dir / "data.json").read_text())
    assert (data["train"]["images"], data["val"]["images"]) == (8, 4)
    assert json.loads((run_dir / "environment.json").read_text())["replicas"] == 1
    (step, path), *others = step_files(run_dir / "checkpoints")
    assert step == history[0]["step"] and not others
    assert read_checkpoint(path)[1]["step"] == step
    assert (run_dir / "checkpoints/best.npz").is_file()
    lock_run_dir(run_dir).close()  # given back


def test_it_goes_on_where_the_data_has_moved_and_the_pretrained_file_is_gone(
    run, data, tmp_path, monkeypatch
):
    run_dir, config = run
    monkeypatch.setattr(Evaluator, "evaluate_and_log", lambda self, writer, step: METRICS)
    config.data.directory = str(shutil.copytree(data, tmp_path / "moved"))
    config.detector.backbone.weights = str(tmp_path / "gone.npz")
    config.train.epochs = 2
    config.evaluation.iou_thresholds = [0.95]  # what is measured may change too
    history = train(config, run_dir)
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert "moved" in (run_dir / "config.yaml").read_text()


def test_other_data_is_refused_and_nothing_written(run, tmp_path):
    run_dir, config = run
    config.data.directory = str(
        make_demo_dataset(tmp_path / "other", train_images=7, val_images=4, seed=5)
    )
    before = contents(run_dir)
    with pytest.raises(DatasetError, match=r"data\.train .*: 8 images .* then, 7 with"):
        train(config, run_dir)
    assert contents(run_dir) == before


def test_a_directory_in_use_is_refused_and_nothing_written(run):
    run_dir, config = run
    before = contents(run_dir)
    config.train.log_every = 7  # may change, so only the lock stands in the way
    with (
        lock_run_dir(run_dir),
        pytest.raises(ConfigError, match=f"another process is training in run directory {run_dir}"),
    ):
        train(config, run_dir)
    assert contents(run_dir) == before


def test_another_config_is_refused_and_nothing_written(run):
    run_dir, config = run
    before = contents(run_dir)
    config.train.seed = 9
    with pytest.raises(ConfigError, match=r"train\.seed: 0 -> 9"):
        train(config, run_dir)
    assert contents(run_dir) == before


def test_categories_need_the_same_names(data, tmp_path):
    renamed = shutil.copytree(data, tmp_path / "data")
    path = renamed / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["categories"][1]["name"] = "uno"
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"same categories:\n  id \d+: 'one' in .*'uno' in "):
        train(tiny_config(renamed), tmp_path / "run")


def test_an_error_puts_everything_back(data, tmp_path):
    config = tiny_config(
        data, "train.mixed_precision=mixed_bfloat16", "train.deterministic=true", "data.source=coco"
    )
    with pytest.raises(ConfigError, match=r"data\.train\.annotations is not set"):
        train(config, tmp_path / "run")
    lock_run_dir(tmp_path / "run").close()
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize("damage", ["interrupt", "disk"])
def test_an_interrupted_evaluation_is_made_up_for(run, monkeypatch, damage):
    run_dir, config = run
    (run_dir / "history.json").unlink()
    (run_dir / "checkpoints/best.npz").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fail(self, writer, step):
        if damage == "interrupt":
            raise KeyboardInterrupt
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # best.npz is larger
        return METRICS

    monkeypatch.setattr(Evaluator, "evaluate_and_log", fail)
    try:
        if damage == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                train(config, run_dir)
        else:
            with pytest.raises(OutputError, match=r"best\.npz: .* continues from its last check"):
                train(config, run_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(run_dir.rglob("*.partial"))
    assert not (run_dir / "checkpoints/best.npz").exists()
    monkeypatch.setattr(Evaluator, "evaluate_and_log", lambda self, writer, step: METRICS)
    assert [entry["AP"] for entry in train(config, run_dir)] == [0.25]
    assert (run_dir / "checkpoints/best.npz").is_file()


def test_a_folder_of_something_else_is_not_touched(data, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.txt").write_text("meow")
    with pytest.raises(ConfigError, match=r"not empty and holds no config\.yaml"):
        train(tiny_config(data), tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.txt"]


def test_a_place_that_cannot_be_written_is_one_message(data):
    with pytest.raises(OutputError, match="cannot write /proc/run: ") as raised:
        train(tiny_config(data), "/proc/run")
    assert "last checkpoint" not in str(raised.value)


def test_settings_without_effect_are_refused_before_training(data, tmp_path):
    for override, message in (
        ("train.optimizer.name=Adam", "train.optimizer.momentum: 0.8 has no effect on Adam"),
        ("train.schedule.milestones=[3]", "train.schedule.milestones: .* no effect on .*constant"),
    ):
        config = tiny_config(data, "train.optimizer.momentum=0.8", override)
        with pytest.raises(ConfigError, match=message):
            train(config, tmp_path / "run")
    prepare_run_dir(tmp_path / "run", tiny_config(data))  # nothing has been trained there
