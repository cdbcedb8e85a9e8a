"""The commands on bad input: exit status 2 and one message that says what to do."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from dataset_layouts import write_yolo

import sepc_tf
from sepc_tf import cli
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.errors import Terminated, UnreadableImageError

pytestmark = pytest.mark.same_on_both_stacks

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/demo_sepc_lite.yaml"
ONE_DEVICE = ["train.strategy=one", "train.cpu_replicas=1"]


@pytest.fixture
def command(capsys):
    """Runs a command in this process; returns (exit status, standard error)."""

    def run(*arguments):
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

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
        (
            ["predict", "--run-dir", "r", "--out", "o", ".", "--limit", "-11"],
            "from 1 on, got '-11'",
        ),
        (["predict", "--run-dir", "r", "--out", "o", ".", "--min-score", "nan"], "0..1, got 'nan'"),
        (["benchmark", "deform-conv", "--repeats", "0"], "whole number from 1 on, got '0'"),
        (["ablate", "--configs", "a", "--jobs", "0"], "whole number from 1 on, got '0'"),
        (["make-demo-data", "d", "--seed", "-1"], "whole number from 0 on, got '-1'"),
        (["flops", "--config", "a", "--size", "0x8"], "expected HEIGHTxWIDTH"),
    ],
)
def test_a_number_out_of_range_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["configs", "copy", "demo_sepc_lite", "file"],
        ["make-demo-data", "file/data"],
        ["ablate", "--configs", CONFIG, "--out", "file"],
        ["benchmark", "label-assignment", "--json", "file/a.json"],
        ["convert", "--to", "mmdet1", "--run-dir", "r", "--out", "file/a.npz"],
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    command, tmp_path, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    code, error = command(*arguments)
    assert code == 2 and "error: cannot write file" in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
def test_a_wrong_setting_is_named(command, tmp_path, arguments, message):
    code, error = command("train", *arguments, "--run-dir", tmp_path / "run")
    assert code == 2
    assert error.startswith("error: ") and message in error and "Traceback" not in error


@pytest.mark.parametrize(
    "arguments", [["predict", "."], ["evaluate", "--run-dir", "runs/demo"]], ids=lambda a: a[0]
)
def test_a_checkpoint_is_not_chosen_from_a_model(command, arguments):
    code, error = command(*arguments, "--model", "x.onnx", "--checkpoint", "last")
    assert code == 2 and error.startswith("error: --checkpoint is one of --run-dir")


def test_missing_data_is_named(command, demo, tmp_path):
    code, error = command(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        *coco(demo, train__images=tmp_path / "nowhere"),
    )  # fmt: skip
    assert code == 2 and "nowhere" in error


def test_validation_with_other_categories_is_refused_before_training(command, demo, tmp_path):
    content = json.loads((demo / "annotations/instances_val.json").read_text())
    content["categories"].append({"id": 77, "name": "other"})
    (tmp_path / "val.json").write_text(json.dumps(content))
    code, error = command(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        *coco(demo, val__annotations=tmp_path / "val.json"),
    )  # fmt: skip
    assert code == 2 and "77" in error and "the same categories" in error
    # Nothing has been trained: the mended command may use the same run directory.
    code, error = command(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        *coco(demo), "detector.backbone.depth=152",
    )  # fmt: skip
    assert code == 2 and "detector.backbone.depth: 152 is none of" in error


def test_an_unreadable_image_can_stop_a_training_with_one_message(command, demo, tmp_path):
    content = json.loads((demo / "annotations/instances_train.json").read_text())
    (tmp_path / "images").mkdir()
    for image in content["images"]:
        (tmp_path / "images" / image["file_name"]).write_bytes(b"no image")
    code, error = command(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        *coco(demo, train__images=tmp_path / "images"), "data.corrupt_images=stop",
        "detector.backbone.width=8", "detector.head.filters=16",
    )  # fmt: skip
    assert code == 2 and error.count("error: ") == 1 and ".jpg" in error


def test_an_empty_annotation_file_is_named(command, demo, tmp_path):
    (tmp_path / "empty.json").write_text("")
    code, error = command(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        *coco(demo, train__annotations=tmp_path / "empty.json"),
    )  # fmt: skip
    assert code == 2 and "empty.json" in error


def test_a_run_directory_of_another_config_lists_the_differences(command, demo, tmp_path):
    from sepc_tf.config import load_config
    from sepc_tf.runs import prepare_run_dir

    prepare_run_dir(tmp_path / "run", load_config(CONFIG))
    (tmp_path / "run" / "checkpoints").mkdir()  # it has trained
    code, error = command(
        "train", "--config", CONFIG, "--run-dir", tmp_path / "run",
        "detector.head.variant=sepc", "train.epochs=50", "train.log_every=3",
    )  # fmt: skip
    assert code == 2
    assert "detector.head.variant: 'sepc_lite' -> 'sepc'" in error
    assert "train.log_every" not in error
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.txt").write_text("meow")
    code, error = command("train", "--config", CONFIG, "--run-dir", tmp_path / "photos")
    assert code == 2 and "not empty and holds no config.yaml" in error


@pytest.mark.parametrize("name", ["evaluate", "analyze", "predict", "export"])
def test_a_folder_that_is_no_run_is_named(command, tmp_path, name):
    (tmp_path / "a.png").touch()
    arguments = {"predict": ["--out", tmp_path / "out", tmp_path], "export": ["--out", tmp_path]}
    code, error = command(name, "--run-dir", tmp_path, *arguments.get(name, []))
    assert code == 2 and "is no run directory" in error


def test_a_run_without_checkpoints_says_so(command, tmp_path):
    from sepc_tf.config import load_config
    from sepc_tf.runs import prepare_run_dir

    run_dir = prepare_run_dir(tmp_path / "run", load_config(CONFIG))
    (run_dir / "categories.json").write_text(json.dumps([{"id": 1, "name": "one"}]))
    for checkpoint, message in (("best", "no best.npz"), ("last", "nothing has been saved"),
                                (tmp_path / "x.npz", "x.npz does not exist")):  # fmt: skip
        code, error = command("evaluate", "--run-dir", run_dir, "--checkpoint", checkpoint)
        assert code == 2 and message in error


def test_a_missing_image_is_named(command, tmp_path):
    code, error = command(
        "predict", "--run-dir", tmp_path, "--out", tmp_path / "out", tmp_path / "gone.jpg"
    )
    assert code == 2 and "gone.jpg does not exist" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "--to", "mmdet1", "--out", "x.npz"], "--to mmdet1 needs --run-dir"),
        (["convert", "--out", "x"], "--to run needs --config and --checkpoint"),
        (["flops", "--config", "retina_r50_sepc_1x"], "did you mean"),
        (["ablate", "--configs", "demo_sepc", "configs/demo_sepc.yaml"], "two configs are named"),
        (["ablate", "--experiment", "fig8"], "the packaged experiments are detectors, fig7"),
        (["analyze", "levels", "--run-dir", "nowhere"], "nowhere is no run directory"),
        (["analyze", "--run-dir", "nowhere"], "nowhere is no run directory"),
        (["analyze", "offsets", "--model", "demo", "--image", "gone.jpg"], "gone.jpg"),
        (["compare", "nowhere", "elsewhere"], "nowhere is no run directory"),
        (["anchors", "--config", "demo_spec"], "did you mean"),
        (["check-parity", "--golden", "nowhere"], "nowhere is no golden folder"),
        (["configs", "show"], "needs a name"),
        (["configs", "show", "demo_spec"], "did you mean the packaged config demo_sepc"),
        (["configs", "copy", "configs/demo_sepc.yaml"], "no packaged config is named"),
    ],
)
def test_each_command_names_what_is_wrong(command, arguments, message):
    code, error = command(*arguments)
    assert code == 2 and error.startswith("error: ") and message in error


def test_an_overlap_that_is_none_is_named(command, tmp_path):
    from sepc_tf.config import load_config
    from sepc_tf.runs import prepare_run_dir

    run_dir = prepare_run_dir(tmp_path / "run", load_config(CONFIG))
    for given, message in (("33", "[33.0]: expected numbers > 0 and <= 1"), ("x", "'x'")):
        code, error = command("evaluate", "--run-dir", run_dir, "--iou", given)
        assert code == 2 and "evaluation.iou_thresholds" in error and message in error


def test_anchors_are_fitted_to_the_data_of_a_config(command, demo, capsys):
    assert cli.main(["anchors", "--config", str(CONFIG), f"data.directory={demo}"]) == 0
    printed = capsys.readouterr().out
    assert "boxes as the network sees them" in printed and "octave_base: " in printed


def test_problems_of_a_data_set_end_with_1(command, tmp_path):
    """They are the result that was asked for, and in the table."""
    assert command("check-dataset", tmp_path / "nowhere.json", tmp_path) == (1, "")


def test_demo_data_is_not_written_over_something_else(command, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, error = command("make-demo-data", tmp_path)
    assert code == 2 and "is not a demo data set" in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["train"],
        ["flops"],
        ["flops", "--table", "--size", "800"],
        ["make-demo-data", "x", "--train-images", "-1"],
        ["benchmark", "deform-conf"],
        ["compare", "one"],
        ["compare", "one", "two", "--samples", "0"],
    ],
)
def test_wrong_arguments_end_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_its_help(capsys, name):
    for arguments in (["--help"], [name, "--help"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 0 and name in capsys.readouterr().out


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"{sepc_tf.__version__}\n"


def test_overrides_may_stand_anywhere(command, tmp_path):
    code, error = command(
        "train", "train.epochs=2", "--config", "demo_sepc", "train.epoch=1", "--run-dir", tmp_path
    )
    assert code == 2 and "did you mean train.epochs" in error


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; start again"),
        (Terminated("SIGTERM: saved step 3"), 143, "SIGTERM: saved step 3"),
        (FileExistsError("x exists"), 2, "error: x exists"),
        (
            PermissionError(13, "Permission denied", "x"),
            2,
            "error: x: Permission denied; change its",
        ),
        (UnreadableImageError("cat.jpg is cut off"), 2, "error: cat.jpg is cut off"),
        # As TensorFlow's data pipeline wraps it.
        (RuntimeError("op: UnreadableImageError: a.jpg is empty\n at 0x1"), 2, "a.jpg is empty\n"),
    ],
)
def test_exit_status_of_an_exception(command, monkeypatch, raised, code, message):
    def run(arguments):
        raise raised

    monkeypatch.setattr("sepc_tf.cli.configs.run", run)
    found, error = command("configs", "list")
    assert found == code and message in error and "Traceback" not in error
    if code == 2:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")  # which --verbose changes
        with pytest.raises(type(raised)):
            command("configs", "list", "--verbose")


def test_a_fault_of_ours_is_a_traceback(command, monkeypatch):
    def run(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("sepc_tf.cli.configs.run", run)
    with pytest.raises(ZeroDivisionError):
        command("configs", "list")


# What makes the packaged model, and what trains another library's, are for this repository only.
OWN = {ROOT / "scripts/make_demo_model.py", ROOT / "scripts/train_kerascv.py"}
SCRIPTS = sorted({*(ROOT / "scripts").glob("*.py")} - OWN)
RENAMED = {"convert-checkpoint": "convert"}


def command_of(script):
    name = script.stem.replace("_", "-")
    return RENAMED.get(name, name)


def test_every_command_has_a_script_but_the_one_for_packaged_configs():
    assert {*map(command_of, SCRIPTS), "configs"} == set(cli.COMMANDS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_the_command_of_its_name(monkeypatch, script):
    called = []
    monkeypatch.setattr(cli, "main", lambda arguments: called.append(arguments) or 7)
    monkeypatch.setattr(sys, "argv", [str(script), "--an", "argument"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert called == [[command_of(script), "--an", "argument"]] and stopped.value.code == 7


def test_the_module_is_the_command(monkeypatch):
    monkeypatch.setattr(cli, "main", lambda: 7)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("sepc_tf", run_name="__main__")
    assert stopped.value.code == 7


def test_check_dataset_reads_other_formats_too(command, demo, tmp_path):
    split = (demo / "annotations/instances_val.json", demo / "val")
    (tmp_path / "yolo").mkdir()
    write_yolo(tmp_path / "yolo", {"train": split, "val": split})
    assert command("check-dataset", "--source", "yolo", tmp_path / "yolo", "--split", "val")[0] == 0
    assert (
        command("check-dataset", "--source", "yolo", tmp_path / "yolo", "--split", "test")[0] == 1
    )
    code, error = command("check-dataset", "--source", "yolo", tmp_path / "yolo", demo / "val")
    assert code == 2 and "takes one path" in error
    code, error = command("check-dataset", split[0])
    assert code == 2 and "folder of its images" in error
    out = tmp_path / "coco.json"
    assert (
        command("convert-dataset", "yolo", tmp_path / "yolo", "--split", "val", "--out", out)[0]
        == 0
    )
    assert command("check-dataset", out, tmp_path / "yolo") == (0, "")
