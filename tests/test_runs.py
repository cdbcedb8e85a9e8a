"""Run directories: who may use one, what is checked, how a detector comes back."""

import json
import logging

import numpy as np
import pytest
import tensorflow as tf
from tiny_run import tiny_config

from sepc_tf.checkpoints.variables import named_variables, read_variables
from sepc_tf.data.categories import categories_of
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.data.fingerprint import fingerprint
from sepc_tf.data.sources import evaluation_pipeline, load_split
from sepc_tf.detectors import DenseDetector
from sepc_tf.errors import CheckpointError, ConfigError, DatasetError, OutputError
from sepc_tf.evaluation.run import Evaluator, evaluate_run
from sepc_tf.runs import (
    check_run_data,
    check_run_dir,
    load_run,
    lock_run_dir,
    prepare_run_dir,
    read_categories,
    write_environment,
)
from sepc_tf.training.checkpoints import write_checkpoint
from sepc_tf.zoo import build_detector

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
DATA = {"train": {"images": 3, "boxes": 4, "sha256": "a"}, "val": {"images": 1, "boxes": 1}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo_dataset(tmp_path_factory.mktemp("demo") / "data", train_images=4, val_images=6)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run with a best and two step checkpoints, as a training on two devices leaves it."""
    config = tiny_config(data, "detector.score_threshold=0.0")
    run_dir = prepare_run_dir(tmp_path_factory.mktemp("runs") / "finished", config)
    write_environment(run_dir, config, tf.distribute.get_strategy())
    environment = json.loads((run_dir / "environment.json").read_text())
    (run_dir / "environment.json").write_text(json.dumps({**environment, "replicas": 2}))
    categories = categories_of(load_split(config.data, "val"))
    (run_dir / "categories.json").write_text(json.dumps(categories))
    detector = build_detector(config.detector, num_classes=len(categories))
    model = {f"model/{k}": v for k, v in read_variables(named_variables(detector)).items()}
    averages = {key.replace("model/", "ema/", 1): 2 * value for key, value in model.items()}
    for name, step, arrays in (
        ("best", 3, model), ("step_00000002", 2, model), ("step_00000004", 4, {**model, **averages})
    ):  # fmt: skip
        write_checkpoint(run_dir / f"checkpoints/{name}.npz", arrays, {"step": step})
    return run_dir, detector


def test_one_process_at_a_time(tmp_path):
    message = "another process is training in run directory"
    with lock_run_dir(tmp_path / "run"), pytest.raises(ConfigError, match=message):
        lock_run_dir(tmp_path / "run")
    lock_run_dir(tmp_path / "run").close()


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("{}")
    for name in ("config.yaml.7.partial", "checkpoints/step_1.npz.7.partial"):
        (tmp_path / name).write_text("half")
    lock_run_dir(tmp_path).close()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", "/proc/run"):
        with pytest.raises(OutputError, match=f"cannot write {path}"):
            lock_run_dir(path)


def test_a_config_that_was_cut_off_is_said(data, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"config\.yaml is empty.*copy the config"):
        check_run_dir(tmp_path, tiny_config(data))
    with pytest.raises(ConfigError, match=r"config\.yaml is empty"):
        load_run(tmp_path)
    # What is left of it is valid YAML, but for the places inside a line.
    prepare_run_dir(tmp_path / "new", tiny_config(data))
    lines = (tmp_path / "new/config.yaml").read_text().splitlines(keepends=True)
    for count in range(len(lines)):
        (tmp_path / "config.yaml").write_text("".join(lines[:count]))
        with pytest.raises(
            ConfigError, match=r"config\.yaml is (empty|cut off), so it is not known"
        ):
            load_run(tmp_path)


def test_where_data_lies_may_change_what_is_trained_may_not(data, tmp_path):
    prepare_run_dir(tmp_path, tiny_config(data))
    (tmp_path / "checkpoints").mkdir()
    check_run_dir(
        tmp_path,
        tiny_config(
            "elsewhere", "data.train.images=a", "data.val.annotations=b", "train.log_every=1",
            "detector.backbone.weights=c.npz",
            "detector.head.kernel_stddev=0.01",
        ),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.flip_probability: 0\.0 -> 0\.5"):
        check_run_dir(tmp_path, tiny_config("elsewhere", "data.flip_probability=0.5"))


def saved_data(run_dir, categories=CATEGORIES, data=DATA):
    (run_dir / "checkpoints").mkdir()
    (run_dir / "categories.json").write_text(json.dumps(categories))
    (run_dir / "data.json").write_text(json.dumps(data))


def test_the_data_of_a_run_is_known_again(tmp_path):
    check_run_data(tmp_path, CATEGORIES, DATA)  # nothing has been trained
    saved_data(tmp_path)
    check_run_data(tmp_path, CATEGORIES, DATA)
    other = {**DATA, "train": {"images": 2, "boxes": 4, "sha256": "b"}}
    with pytest.raises(DatasetError, match=r"data\.train .* 3 images with 4 boxes then, 2 with 4"):
        check_run_data(tmp_path, CATEGORIES, other)
    renamed = [CATEGORIES[0], {"id": 2, "name": "wolf"}]
    with pytest.raises(DatasetError, match=r"id 2: 'dog' in .*, 'wolf' in the data"):
        check_run_data(tmp_path, renamed, DATA)


def test_an_older_run_without_data_json_goes_on_with_a_warning(tmp_path, caplog):
    saved_data(tmp_path)
    (tmp_path / "data.json").unlink()
    (tmp_path / "checkpoints/step_1.npz").write_text("")
    with caplog.at_level(logging.WARNING, "sepc_tf"):
        check_run_data(tmp_path, CATEGORIES, DATA)
    assert "could not be checked" in caplog.text


@pytest.mark.parametrize("content", ["", "[", "{}", "[3]", '{"train": 4}', "[" * 100_000])
def test_damaged_files_are_one_message(tmp_path, content):
    saved_data(tmp_path)
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ConfigError, match=r"data\.json"):
        check_run_data(tmp_path, CATEGORIES, DATA)
    (tmp_path / "categories.json").write_text(content)
    with pytest.raises(ConfigError, match=r"categories\.json"):
        read_categories(tmp_path)


def test_fingerprints_follow_what_is_learnt_not_where_it_lies(data):
    config = tiny_config(data)
    dataset = load_split(config.data, "train")
    first = fingerprint(dataset)
    assert first["images"] == 4 and first["boxes"] == sum(len(r.boxes) for r in dataset.images)
    assert first == fingerprint(load_split(config.data, "train"))
    assert first["sha256"] != fingerprint(dataset.first(3))["sha256"]
    dataset.images[0].boxes[0, 0] += 0.25
    assert first["sha256"] != fingerprint(dataset)["sha256"]


def test_the_best_the_newest_or_a_named_checkpoint(finished, tmp_path):
    run_dir, detector = finished
    best, last = load_run(run_dir), load_run(run_dir, "last")
    named = load_run(run_dir, run_dir / "checkpoints/step_00000002.npz")
    assert (best.step, last.step, named.step) == (3, 4, 2)
    for run, factor in ((best, 1), (last, 2), (named, 1)):  # averages where there are any
        loaded = read_variables(named_variables(run.detector))
        for name, value in read_variables(named_variables(detector)).items():
            np.testing.assert_array_equal(loaded[name], factor * value)
    with pytest.raises(CheckpointError, match=r"x\.npz does not exist"):
        load_run(run_dir, tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="is no run directory"):
        load_run(tmp_path)


def test_evaluation_uses_all_devices_each_with_its_batch_of_the_training(
    finished, two_replicas, monkeypatch, tmp_path
):
    run_dir, _ = finished  # batch size 4, trained on 2 devices
    one, two = load_run(run_dir), load_run(run_dir, strategy=two_replicas)
    assert (one.batch_size, two.batch_size) == (2, 4)
    dataset = load_split(one.config.data, "val")
    replicas = []

    def detect(self, images, image_sizes, original_sizes=None):
        context = tf.distribute.get_replica_context()
        replicas.append((context.num_replicas_in_sync, images.shape[0]))
        sizes = tf.cast(original_sizes, tf.float32)
        corners = tf.concat([tf.zeros_like(sizes), sizes[:, ::-1]], axis=1)
        ones = tf.ones_like(image_sizes[:, :1])
        return {
            "boxes": corners[:, None],
            "scores": tf.cast(ones, tf.float32),
            "classes": ones,
            "num_detections": ones[:, 0],
        }

    monkeypatch.setattr(DenseDetector, "detect", detect)
    written = []
    for run, count in ((one, 1), (two, 2)):
        pipeline = evaluation_pipeline(dataset, run.config, run.batch_size)
        evaluate_run(run, dataset, pipeline, tmp_path)
        written.append(json.loads((tmp_path / "detections.json").read_text()))
        assert set(replicas) == {(count, 2)}
        replicas.clear()
    assert len(written[0]) == len(dataset)
    assert sorted(map(str, written[0])) == sorted(map(str, written[1]))


def test_a_converted_run_is_evaluated_with_few_images_a_device(finished, data, tmp_path):
    run_dir, _ = finished
    (run_dir / "environment.json").rename(run_dir / "environment.json.away")
    try:
        assert load_run(run_dir).batch_size == 2
    finally:
        (run_dir / "environment.json.away").rename(run_dir / "environment.json")


def test_an_output_that_cannot_be_written_is_found_before_the_evaluation(finished, monkeypatch):
    run = load_run(finished[0])
    dataset = load_split(run.config.data, "val")
    monkeypatch.setattr(Evaluator, "detections", lambda self: pytest.fail("evaluated"))
    with pytest.raises(OutputError, match="cannot write /proc/out"):
        evaluate_run(run, dataset, evaluation_pipeline(dataset, run.config), "/proc/out")
