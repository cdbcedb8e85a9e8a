"""Conversion both ways, of checkpoints with the authors' names (from the manifest) and narrow."""

import importlib.util
import json
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints import (
    CheckpointError,
    export_state_dict,
    named_variables,
    read_state_dict,
)
from sepc_tf.config import ConfigError, load_config
from sepc_tf.convert import (
    annotation_categories,
    coco_categories,
    convert_to_mmdet1,
    convert_to_run,
)
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.predict import Predictor
from sepc_tf.runs import load_run
from sepc_tf.train import train
from sepc_tf.zoo import build_detector

pytestmark = pytest.mark.same_on_both_stacks

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/retinanet_r50_sepc_1x.yaml"
NARROW = ["detector.backbone.width=8", "detector.head.filters=8", "data.test_short_side=384"]
HEAD = "bbox_head.retina_cls"


def config_of(*overrides, convention="mmdet1"):
    return load_config(CONFIG, [*NARROW, f"detector.convention={convention}", *overrides])


@pytest.fixture(scope="module")
def authors_names(golden_dir):
    """Case name of a detector -> {key: kind}, as the authors' code has them."""
    sets = json.loads((golden_dir / "manifest.json").read_text())["param_sets"]
    return {name: {key: kind for key, _, kind in params} for name, params in sets.items()}


@pytest.fixture(scope="module")
def generate(golden_dir):
    """The golden recipe's generator of one parameter."""
    spec = importlib.util.spec_from_file_location("golden_recipe", golden_dir / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.generate


@pytest.fixture(scope="module")
def sepc(authors_names, generate):
    """A state dict of a narrow RetinaNet with SEPC, 80 classes: the authors' names, our widths."""
    shapes = export_state_dict(build_detector(config_of().detector, num_classes=80))
    kinds = authors_names["detector_retina_sepc"]
    assert set(shapes) == set(kinds)
    return {key: generate("test", key, shapes[key].shape, kind) for key, kind in kinds.items()}


def save(path, state_dict):
    np.savez(path, **state_dict)
    return path


@pytest.fixture(scope="module")
def converted(sepc, tmp_path_factory):
    """A run directory made of `sepc`, and the report."""
    folder = tmp_path_factory.mktemp("converted")
    report = convert_to_run(config_of(), save(folder / "sepc.npz", sepc), folder / "run")
    return folder / "run", report


def test_coco_categories(coco128_dir):
    path = coco128_dir / "annotations/instances_train2017.json"
    assert coco_categories() == annotation_categories(path)


def test_a_converted_run_has_the_weights_and_predicts(converted, sepc, tmp_path):
    run_dir, report = converted
    counters = {key for key in sepc if key.endswith("num_batches_tracked")}
    assert {key for _, key in report.assigned} == set(sepc) - counters
    assert not report.ignored and not report.kept
    assert "head/classification/kernel <- bbox_head.retina_cls.weight" in str(report)
    assert str(report) in (run_dir / "conversion.txt").read_text()

    run = load_run(run_dir)
    assert run.categories == coco_categories() and run.step == 0
    exported = export_state_dict(run.detector)
    for key in set(sepc) - counters:
        np.testing.assert_array_equal(exported[key], sepc[key])
    # The extra convolutions are unpadded: each map is two cells smaller than the pyramid's.
    outputs = run.detector(tf.zeros([1, 384, 384, 3]))
    assert outputs["classification"][0].shape == (1, 46, 46, 720)
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    tf.io.write_file(str(tmp_path / "image.png"), tf.io.encode_png(image))
    assert len(Predictor(run)(tmp_path / "image.png").scores) <= 100


def test_the_way_back(converted, sepc, tmp_path):
    convert_to_mmdet1(converted[0], tmp_path / "back.npz")
    back = read_state_dict(tmp_path / "back.npz")
    assert set(back) == set(sepc)
    for key, value in sepc.items():
        np.testing.assert_array_equal(back[key], value)
        assert back[key].dtype == value.dtype
    with pytest.raises(FileExistsError):
        convert_to_mmdet1(converted[0], tmp_path / "back.npz")
    with pytest.raises(ConfigError, match=r"ends in \.npz or \.pth"):
        convert_to_mmdet1(converted[0], tmp_path / "back.h5")


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
@pytest.mark.parametrize(
    ("kind", "variant", "name"),
    [
        ("fsaf", "baseline", "detector_fsaf_baseline"),
        ("fsaf", "sepc", "detector_fsaf_sepc"),
        ("free_anchor", "sepc", "detector_freeanchor_sepc"),
        ("retinanet", "baseline", "detector_retina_baseline"),
    ],
)
def test_every_detector_in_both_conventions(
    authors_names, generate, tmp_path, caplog, kind, variant, name, convention
):
    overrides = [f"detector.type={kind}", f"detector.head.variant={variant}"]
    config = config_of(*overrides, convention=convention)
    shapes = export_state_dict(build_detector(config.detector, num_classes=80))
    kinds = authors_names[name]
    assert set(shapes) == set(kinds)
    state_dict = {k: generate("test", k, shapes[k].shape, kind) for k, kind in kinds.items()}
    with caplog.at_level("WARNING", logger="sepc_tf.convert"):
        convert_to_run(config, save(tmp_path / "x.npz", state_dict), tmp_path / "run")
    assert ("detector.convention is modern" in caplog.text) == (convention == "modern")
    run = load_run(tmp_path / "run")
    assert run.config.detector == config.detector
    for key, value in export_state_dict(run.detector).items():
        np.testing.assert_array_equal(value, state_dict[key])


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_of_both_serialisations(sepc, tmp_path, zipped):
    torch = pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in sepc.items()}
    content = {"meta": {"epoch": 12, "CLASSES": ("person",)}, "state_dict": tensors}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    convert_to_run(config_of(), tmp_path / "x.pth", tmp_path / "run")
    convert_to_mmdet1(tmp_path / "run", tmp_path / "back.pth")
    back = read_state_dict(tmp_path / "back.pth")
    for key, value in sepc.items():
        np.testing.assert_array_equal(back[key], value)


def refused(config, checkpoint, folder, error=CheckpointError, **options):
    """Converts, expecting an error and that nothing is written; returns the message."""
    with pytest.raises(error) as caught:
        convert_to_run(config, checkpoint, folder / "refused", **options)
    assert not (folder / "refused").exists()
    return str(caught.value)


def test_a_wrong_depth_is_one_list_of_every_mismatch(sepc, tmp_path):
    path = save(tmp_path / "x.npz", sepc)
    message = refused(config_of("detector.backbone.depth=101"), path, tmp_path)
    assert "x.npz: the checkpoint does not fit" in message
    assert "missing: backbone.layer3.22.conv1.weight" in message
    # 17 more blocks of 3 convolutions and 3 norms of 4 arrays.
    assert message.count("missing: ") == 17 * 15
    message = refused(config_of("detector.backbone.depth=18"), path, tmp_path)
    for part in (
        "wrong shape: backbone.layer1.0.conv1.weight",
        "unexpected: backbone.layer1.0.conv3.weight",
    ):
        assert part in message


def test_a_wrong_class_count_and_a_new_head(sepc, tmp_path):
    path = save(tmp_path / "x.npz", sepc)
    categories = [{"id": 5, "name": "apple"}, {"id": 7, "name": "pear"}]
    message = refused(config_of(), path, tmp_path, categories=categories)
    assert f"wrong shape: {HEAD}.weight: expected (18, 8, 3, 3), got (720, 8, 3, 3)" in message
    assert "2 problems" in message and "--reset-head" in message

    report = convert_to_run(config_of(), path, tmp_path / "run", categories, reset_head=True)
    assert report.ignored == [f"{HEAD}.weight", f"{HEAD}.bias"]
    run = load_run(tmp_path / "run")
    assert run.categories == categories
    exported = export_state_dict(run.detector)
    np.testing.assert_allclose(exported[f"{HEAD}.bias"], -np.log(99), rtol=1e-6)
    np.testing.assert_array_equal(
        exported["bbox_head.retina_reg.weight"], sepc["bbox_head.retina_reg.weight"]
    )


class _Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize(
    ("name", "classifier", "settings"),
    [
        ("fcos", "fcos_cls", ["detector.backbone.style=caffe"]),
        ("reppoints", "reppoints_cls_out", []),
    ],
)
def test_anchor_free_detectors_there_and_back(name, classifier, settings, golden_dir, tmp_path):
    manifest = golden_dir.parent / "golden_zoo" / "manifest.json"
    if not manifest.is_file():
        pytest.skip(f"no golden data at {manifest.parent} (set SEPC_TF_SHARED)")
    zoo = json.loads(manifest.read_text())
    narrow = ["detector.backbone.width=8", "detector.head.filters=8", "detector.convention=mmdet1"]
    config = load_config(f"{name}_r50_baseline_1x", [*narrow, *settings])
    state_dict = export_state_dict(build_detector(config.detector, num_classes=80))
    assert set(state_dict) == {key for key, *_ in zoo["param_sets"][f"detector_{name}_baseline"]}
    path = save(tmp_path / "theirs.npz", state_dict)
    categories = coco_categories()[:2]
    with pytest.raises(
        CheckpointError, match=rf"(?s)bbox_head\.{classifier}.*--reset-head"
    ) as caught:
        convert_to_run(config, path, tmp_path / "run", categories)
    assert "2 problems" in str(caught.value)
    report = convert_to_run(config, path, tmp_path / "run", categories, reset_head=True)
    assert [p for p in report.kept if "head" not in p] == [] and len(report.kept) == 2
    back = convert_to_mmdet1(tmp_path / "run", tmp_path / "back.npz")
    for key, value in back.items():
        if not key.startswith(f"bbox_head.{classifier}"):
            np.testing.assert_array_equal(value, state_dict[key], err_msg=key)
            assert value.shape == state_dict[key].shape


def test_files_that_are_no_checkpoints(sepc, tmp_path):
    whole = save(tmp_path / "whole.npz", sepc).read_bytes()
    for name, content in {"cut.npz": whole[: len(whole) // 2], "text.npz": b"no weights"}.items():
        (tmp_path / name).write_bytes(content)
        assert f"{name}: not a readable .npz" in refused(config_of(), tmp_path / name, tmp_path)
    refused(config_of(), tmp_path / "gone.npz", tmp_path, FileNotFoundError)
    backbone = {"conv1.weight": np.zeros([8, 3, 7, 7], np.float32)}
    message = refused(config_of(), save(tmp_path / "backbone.npz", backbone), tmp_path)
    assert "detector.backbone.weights=FILE" in message


def test_code_in_a_file_is_never_executed(tmp_path):
    target = tmp_path / "executed"
    content = {"state_dict": _Malicious(str(target))}
    (tmp_path / "x.pth").write_bytes(pickle.dumps(content))
    objects = np.empty(1, object)
    objects[0] = content
    np.savez(tmp_path / "x.npz", x=objects)
    target.unlink(missing_ok=True)
    for name in ("x.pth", "x.npz"):  # without PyTorch the first is refused unread
        assert name in refused(config_of(), tmp_path / name, tmp_path)
        assert not target.exists()


def test_an_output_folder_in_use(sepc, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    path = save(tmp_path / "x.npz", sepc)
    with pytest.raises(ConfigError, match="not an empty folder"):
        convert_to_run(config_of(), path, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_the_command(sepc, tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "scripts/convert_checkpoint.py"), run_name="__main__")
        printed = capsys.readouterr()
        return stopped.value.code, printed.out, printed.err

    path, run_dir = save(tmp_path / "x.npz", sepc), tmp_path / "run"
    convert = ["--config", CONFIG, "--checkpoint", path, "--out", run_dir, *NARROW]
    code, _, error = command(*convert, "detector.backbone.depth=18")
    assert code == 2 and error.startswith("error: ") and not run_dir.exists()
    code, out, _ = command(*convert, "detector.convention=mmdet1")
    assert code == 0 and "variables assigned" in out and "sepc-tf evaluate" in out
    code, out, _ = command("--to", "mmdet1", "--run-dir", run_dir, "--out", tmp_path / "back.npz")
    assert code == 0 and f"{len(sepc)} arrays" in out
    code, _, error = command("--to", "mmdet1", "--out", tmp_path / "other.npz")
    assert code == 2 and "--to mmdet1 needs --run-dir" in error


def test_training_a_converted_run_starts_from_its_weights(sepc, tmp_path):
    data = make_demo_dataset(tmp_path / "data", train_images=4, val_images=2)
    config = config_of(
        "data.source=demo", f"data.directory={data}", "data.short_side=[288]",
        "data.test_short_side=288", "data.long_side=288", "train.strategy=one", "train.epochs=1",
        "train.batch_size=4", "train.optimizer.learning_rate=1.0e-12",
        "train.optimizer.weight_decay=0.0",
    )  # fmt: skip
    categories = annotation_categories(data / "annotations/instances_train.json")
    path = save(tmp_path / "sepc.npz", sepc)
    convert_to_run(config, path, tmp_path / "run", categories, reset_head=True)
    before = load_run(tmp_path / "run").detector
    train(load_config(tmp_path / "run/config.yaml"), tmp_path / "run")
    after = named_variables(load_run(tmp_path / "run", "last").detector)
    for name, variable in named_variables(before).items():
        if not name.split("/")[-1].startswith("moving_"):
            np.testing.assert_allclose(after[name], variable, atol=1e-6, err_msg=name)
