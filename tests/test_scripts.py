"""The command lines on bad input: exit status 2 and one message that says what to do."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from sepc_tf.data.demo import make_demo_dataset

SCRIPTS = Path(__file__).parents[1] / "scripts"
CONFIG = SCRIPTS.parent / "configs/demo_sepc_lite.yaml"
ONE_DEVICE = ["train.strategy=one", "train.cpu_replicas=1"]


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs a script in this process; returns (exit status, standard error)."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        return stopped.value.code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_dataset(tmp_path_factory.mktemp("demo") / "data", train_images=8, val_images=4)


def coco(demo, **changed):
    """Overrides that read the demo folder as any COCO data set."""
    paths = {
        "train.annotations": demo / "annotations/instances_train.json",
        "train.images": demo / "train",
        "val.annotations": demo / "annotations/instances_val.json",
        "val.images": demo / "val",
    }
    paths |= {key.replace("__", "."): value for key, value in changed.items()}
    return [
        "data.source=coco",
        "data.directory=null",
        *ONE_DEVICE,
        *(f"data.{key}={value}" for key, value in paths.items()),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/demo_sepc_light.yaml"], "does not exist"),
        (["--config", CONFIG, "train.epoch=3"], "did you mean train.epochs"),
        (["--config", CONFIG, "train.epochs=many"], "expected int"),
        (["--config", CONFIG, "data.source=coco", *ONE_DEVICE], "data.train.annotations"),
        (["--config", CONFIG, "train.strategy=multi_worker", ONE_DEVICE[1]], "needs TF_CONFIG"),
        (["--config", CONFIG, "train.strategy=one"], "train.cpu_replicas: 2 has no effect on"),
    ],
)
def test_a_wrong_setting_is_named(script, tmp_path, arguments, message):
    code, error = script("train", *arguments, "--run-dir", tmp_path / "run")
    assert code == 2
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_missing_data_is_named(script, demo, tmp_path):
    code, error = script(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        *coco(demo, train__images=tmp_path / "nowhere"),
    )  # fmt: skip
    assert code == 2 and "nowhere" in error


def test_validation_with_other_categories_is_refused_before_training(script, demo, tmp_path):
    content = json.loads((demo / "annotations/instances_val.json").read_text())
    content["categories"].append({"id": 77, "name": "other"})
    (tmp_path / "val.json").write_text(json.dumps(content))
    code, error = script(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        *coco(demo, val__annotations=tmp_path / "val.json"),
    )  # fmt: skip
    assert code == 2 and "77" in error and "the same categories" in error
    # Nothing has been trained: the mended command may use the same run directory.
    code, error = script(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        *coco(demo), "detector.backbone.depth=152",
    )  # fmt: skip
    assert code == 2 and "detector.backbone.depth: 152 is none of" in error


def test_an_unreadable_image_can_stop_a_training_with_one_message(script, demo, tmp_path):
    content = json.loads((demo / "annotations/instances_train.json").read_text())
    (tmp_path / "images").mkdir()
    for image in content["images"]:
        (tmp_path / "images" / image["file_name"]).write_bytes(b"no image")
    code, error = script(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        *coco(demo, train__images=tmp_path / "images"), "data.corrupt_images=stop",
        "detector.backbone.width=8", "detector.head.filters=16",
    )  # fmt: skip
    assert code == 2 and error.count("error: ") == 1 and ".jpg" in error


def test_an_empty_annotation_file_is_named(script, demo, tmp_path):
    (tmp_path / "empty.json").write_text("")
    code, error = script(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        *coco(demo, train__annotations=tmp_path / "empty.json"),
    )  # fmt: skip
    assert code == 2 and "empty.json" in error


def test_a_run_directory_of_another_config_lists_the_differences(script, demo, tmp_path):
    from sepc_tf.config import load_config
    from sepc_tf.runs import prepare_run_dir

    prepare_run_dir(tmp_path / "run", load_config(CONFIG))
    (tmp_path / "run" / "checkpoints").mkdir()  # it has trained
    code, error = script(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        "detector.head.variant=sepc", "train.epochs=50", "train.log_every=3",
    )  # fmt: skip
    assert code == 2
    assert "detector.head.variant: 'sepc_lite' -> 'sepc'" in error
    assert "train.log_every" not in error
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.txt").write_text("meow")
    code, error = script("train", "--config", CONFIG, "--run-dir", tmp_path / "photos")
    assert code == 2 and "not empty and holds no config.yaml" in error


@pytest.mark.parametrize("name", ["evaluate", "predict", "export"])
def test_a_folder_that_is_no_run_is_named(script, tmp_path, name):
    arguments = {"predict": ["--out", tmp_path / "out", tmp_path], "export": ["--out", tmp_path]}
    code, error = script(name, "--run-dir", tmp_path, *arguments.get(name, []))
    assert code == 2 and "is no run directory" in error


def test_a_run_without_checkpoints_says_so(script, tmp_path):
    from sepc_tf.config import load_config
    from sepc_tf.runs import prepare_run_dir

    run_dir = prepare_run_dir(tmp_path / "run", load_config(CONFIG))
    (run_dir / "categories.json").write_text(json.dumps([{"id": 1, "name": "one"}]))
    for checkpoint, message in (("best", "no best.npz"), ("last", "nothing has been saved"),
                                (tmp_path / "x.npz", "x.npz does not exist")):  # fmt: skip
        code, error = script("evaluate", "--run-dir", run_dir, "--checkpoint", checkpoint)
        assert code == 2 and message in error


def test_a_missing_image_is_named(script, tmp_path):
    code, error = script(
        "predict", "--run-dir", tmp_path, "--out", tmp_path / "out", tmp_path / "gone.jpg"
    )
    assert code == 2 and "gone.jpg does not exist" in error
