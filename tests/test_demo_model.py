"""The detector that comes with the package, and the script that makes it."""

import json

import numpy as np
import pytest
import tensorflow as tf
from script_modules import load_script
from tiny_run import tiny_config

import sepc_tf
from sepc_tf import runs
from sepc_tf.checkpoints.variables import named_variables, read_variables
from sepc_tf.cli import main
from sepc_tf.data.demo import CATEGORY_NAMES, make_demo_dataset
from sepc_tf.errors import ConfigError
from sepc_tf.files import write_json
from sepc_tf.training.checkpoints import read_checkpoint, write_checkpoint

FILES = {"checkpoints", "config.yaml", "categories.json", "environment.json", "metrics.json"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the run's arrays, model directory, model card, data) of a detector that finds anything."""
    folder = tmp_path_factory.mktemp("made")
    data = make_demo_dataset(folder / "demo_data", train_images=0, val_images=2)
    config = tiny_config(data)
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(CATEGORY_NAMES)]
    run_dir = runs.prepare_run_dir(folder / "run", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["/bin/sepc-tf", "train", "--config", "tiny"])
        runs.write_environment(run_dir, config, tf.distribute.get_strategy())
    write_json(run_dir / "categories.json", categories)
    detector = sepc_tf.build_detector(config.detector, num_classes=10)
    arrays = {f"model/{k}": v for k, v in read_variables(named_variables(detector)).items()}
    metrics = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 0.25)
    (run_dir / "checkpoints").mkdir()
    meta = {"step": 9, "seconds": 7.4, "metrics": metrics}
    write_checkpoint(run_dir / "checkpoints/best.npz", arrays, meta)
    card = folder / "card.md"
    card.write_text("# Card\n<!-- numbers -->\nold\n<!-- end of numbers -->\nend\n")
    (folder / "model").mkdir()
    (folder / "model/of_before").touch()
    load_script("make_demo_model").make_demo_model(run_dir, folder / "model", card)
    return arrays, folder / "model", card, data


def test_it_is_a_run_directory_in_half_precision(made):
    arrays, model_dir, _, _ = made
    stored, meta = read_checkpoint(model_dir / "checkpoints/best.npz")
    assert set(stored) == set(arrays) and meta == {"step": 9}
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    assert {path.name for path in model_dir.iterdir()} == FILES
    for name, variable in named_variables(sepc_tf.load_run(model_dir).detector).items():
        value = variable.numpy()
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, arrays[f"model/{name}"], rtol=2**-11, atol=2**-25)


def test_the_card_has_the_numbers(made):
    _, model_dir, card, _ = made
    text = card.read_text()
    metrics = json.loads((model_dir / "metrics.json").read_text())
    assert "\nold\n" not in text and text.startswith("# Card\n") and text.endswith("\nend\n")
    assert "| as trained, float32 | 25.0 | 25.0 |" in text
    assert f"| as shipped, float16 | {100 * metrics['AP']:.1f} | " in text
    assert "9 steps on 1 replicas in 7 s" in text
    assert "made by `sepc-tf train --config tiny`, seed" in text


def test_predict_model_demo(made, tmp_path, monkeypatch):
    _, model_dir, _, data = made
    monkeypatch.setitem(runs.PACKAGED_RUNS, "demo", model_dir)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--model", "demo", str(data / "val")]) == 0
    assert len(list((tmp_path / "predictions").glob("*.jpg"))) == 2
    content = json.loads((tmp_path / "predictions/predictions.json").read_text())
    assert len(content["images"]) == 2


def test_the_packaged_one_finds_the_digits(tmp_path):
    """On four validation images of another seed, as well as its card says of two hundred."""
    model_dir = sepc_tf.packaged_run("demo")
    assert {path.name for path in model_dir.iterdir()} == FILES
    assert (model_dir / "checkpoints/best.npz").stat().st_size < 3e6
    data = make_demo_dataset(tmp_path / "digits", train_images=0, val_images=4, seed=1)
    run = sepc_tf.load_run(model_dir, overrides=[f"data.directory={data}"])
    dataset = sepc_tf.load_split(run.config.data, "val")
    batches = sepc_tf.evaluation_pipeline(dataset, run.config)
    assert sepc_tf.evaluate_run(run, dataset, batches, tmp_path).AP50 > 0.6


def test_another_name_is_refused(capsys):
    with pytest.raises(ConfigError, match="no packaged model is named dmeo; there is demo"):
        sepc_tf.packaged_run("dmeo")
    with pytest.raises(SystemExit):
        main(["predict", "--model", "demo", "--run-dir", "runs/demo", "image.jpg"])
    assert "not allowed with" in capsys.readouterr().err
