"""Every example of every docstring is run.

The examples of a module run in a folder of their own. Beside the names of the module they may use
`tf`, `keras`, `np`, `Path`, `Image`, every public name of `sepc_tf`, and what `Examples` makes: in
the folder a data set `demo_data`, the same as `voc_data` and `yolo_data`, an image `image.jpg`, a
finished run `runs/demo`, the packaged `configs`; as names what is a property there.
"""

from __future__ import annotations

import doctest
import functools
import importlib
import pkgutil
import re
import shutil
from pathlib import Path

import keras
import keras_cv  # noqa: F401 - on Keras 2 its first import prints a line
import numpy as np
import pytest
import tensorflow as tf
from dataset_layouts import write_voc, write_yolo
from PIL import Image

import sepc_tf
from sepc_tf.checkpoints.variables import named_variables, read_variables
from sepc_tf.config import config_to_yaml
from sepc_tf.config_files import CONFIG_DIR
from sepc_tf.data.demo import CATEGORY_NAMES
from sepc_tf.files import write_json
from sepc_tf.training.checkpoints import write_checkpoint

pytestmark = pytest.mark.same_on_both_stacks

MODULES = ["sepc_tf"] + [
    module.name
    for module in pkgutil.walk_packages(sepc_tf.__path__, "sepc_tf.")
    if not module.name.endswith("__main__")
]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SMALL = [
    *("data.directory=demo_data", "data.short_side=[64]", "data.test_short_side=64"),
    *("data.long_side=64", "detector.backbone.width=8", "detector.head.filters=16"),
    *(
        "detector.head.num_convs=1",
        "train.strategy=one",
        "train.cpu_replicas=1",
        "train.batch_size=2",
    ),
]


class Examples:
    """What examples use without making it, made when the first of them does."""

    @functools.cached_property
    def config(self):
        return sepc_tf.load_config("demo_sepc_lite", SMALL)

    @functools.cached_property
    def run(self):
        return sepc_tf.load_run("runs/demo")

    @functools.cached_property
    def detector(self):
        return self.run.detector

    @functools.cached_property
    def dataset(self):
        return sepc_tf.load_split(self.config.data, "val")

    @functools.cached_property
    def pipeline(self):
        return sepc_tf.evaluation_pipeline(self.dataset, self.config)

    @functools.cached_property
    def image(self):
        return np.asarray(Image.open("image.jpg"))


NAMES = [name for name in vars(Examples) if not name.startswith("_")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The folder that examples find, to be copied."""
    folder = tmp_path_factory.mktemp("examples")
    data = sepc_tf.make_demo_dataset(folder / "demo_data", train_images=4, val_images=4)
    splits = {"val": (data / "annotations/instances_val.json", data / "val")}
    write_voc(folder / "voc_data", splits)
    (folder / "yolo_data").mkdir()
    write_yolo(folder / "yolo_data", splits)
    (folder / "image.jpg").write_bytes((data / "val/000001.jpg").read_bytes())
    run_dir = folder / "runs/demo"
    (run_dir / "checkpoints").mkdir(parents=True)
    config = sepc_tf.load_config("demo_sepc_lite", SMALL)
    (run_dir / "config.yaml").write_text(config_to_yaml(config))
    detector = sepc_tf.build_detector(config.detector, num_classes=10)
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(CATEGORY_NAMES)]
    write_json(run_dir / "categories.json", categories)
    arrays = read_variables(named_variables(detector))
    weights = {f"model/{name}": array for name, array in arrays.items()}
    write_checkpoint(run_dir / "checkpoints/best.npz", weights, {"step": 0})
    return folder


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, request, tmp_path, monkeypatch):
    if name == "sepc_tf.kerashub":
        pytest.importorskip("keras_hub", reason="needs the extra kerashub (Keras 3)")
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder().find(module, name) if test.examples]
    if not tests:
        return
    source = "\n".join(example.source for test in tests for example in test.examples)
    used = [n for n in NAMES if re.search(rf"\b{n}\b", source)]
    if used or re.search(r"demo_data|voc_data|yolo_data|image\.jpg|runs/demo", source):
        shutil.copytree(request.getfixturevalue("folder"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "configs").symlink_to(CONFIG_DIR)
    monkeypatch.chdir(tmp_path)
    examples = Examples()
    given = {"tf": tf, "keras": keras, "np": np, "Path": Path, "Image": Image}
    given |= {name: getattr(sepc_tf, name) for name in sepc_tf.__all__}
    runner = doctest.DocTestRunner(verbose=False, optionflags=OPTIONS)
    report = []
    for test in tests:
        test.globs = {**given, **{n: getattr(examples, n) for n in used}, **vars(module)}
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
