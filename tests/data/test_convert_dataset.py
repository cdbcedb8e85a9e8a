import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_layouts import write_voc, write_yolo

from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.convert_dataset import convert_dataset
from sepc_tf.data.demo import CATEGORY_NAMES, make_demo_dataset
from sepc_tf.data.formats import load_dataset
from sepc_tf.errors import ConfigError, DatasetError, OutputError

pytestmark = pytest.mark.same_on_both_stacks

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_dataset.py"


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    demo = make_demo_dataset(tmp_path_factory.mktemp("demo") / "data", 0, 6, seed=1)
    return {"val": (demo / "annotations/instances_val.json", demo / "val")}


@pytest.mark.parametrize(
    ("source", "write", "names"), [("yolo", write_yolo, None), ("voc", write_voc, CATEGORY_NAMES)]
)
def test_the_file_written_is_the_data_set_read(splits, tmp_path, source, write, names):
    place = write(tmp_path / source, splits)
    converted = convert_dataset(source, place, tmp_path / "new/val.json", "val", names)
    dataset = CocoDataset.load(converted.annotations_json, converted.image_dir)
    expected = CocoDataset.load(*splits["val"])
    boxes = sum(len(image.boxes) for image in expected.images)
    assert (converted.num_images, converted.num_categories) == (len(dataset), 10) == (6, 10)
    assert converted.num_annotations == len(dataset.coco.anns) == boxes > 0
    assert str(converted.image_dir) in str(converted)
    assert dataset.class_names == expected.class_names
    direct = load_dataset(source, place, "val", names)
    for image, other, same in zip(dataset.images, expected.images, direct.images):
        np.testing.assert_array_equal(image.boxes, other.boxes)
        np.testing.assert_array_equal(image.labels, other.labels)
        np.testing.assert_array_equal(image.boxes, same.boxes)
        np.testing.assert_array_equal(image.read(), other.read())


def test_nothing_is_overwritten_or_half_written(splits, tmp_path):
    place = write_yolo(tmp_path / "yolo", splits)
    (tmp_path / "there.json").write_text("x")
    with pytest.raises(OutputError, match=r"there\.json exists already"):
        convert_dataset("yolo", place, tmp_path / "there.json", "val")
    assert (tmp_path / "there.json").read_text() == "x"
    with pytest.raises(OutputError, match=r"there\.json/a\.json cannot be written"):
        convert_dataset("yolo", place, tmp_path / "there.json/a.json", "val")
    with pytest.raises(DatasetError, match="has no split 'train'"):
        convert_dataset("yolo", place, tmp_path / "new.json")
    with pytest.raises(ConfigError, match="'coco' is none of: yolo, voc"):
        convert_dataset("coco", place, tmp_path / "new.json")
    with pytest.raises(ConfigError, match="class names can be given for voc only"):
        convert_dataset("yolo", place, tmp_path / "new.json", "val", ["a"])
    assert not (tmp_path / "new.json").exists()


def test_the_script(splits, tmp_path, monkeypatch, capsys):
    place = write_voc(tmp_path / "voc", splits)
    arguments = ["voc", place, "--split", "val", "--out", tmp_path / "a.json"]
    monkeypatch.setattr(
        sys, "argv", ["convert_dataset", *map(str, arguments), "--class-names", *CATEGORY_NAMES]
    )
    for code, message in ((0, "6 images"), (2, "exists already")):
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        output = capsys.readouterr()
        assert stopped.value.code == code and message in output.out + output.err
    names = [c["name"] for c in json.loads((tmp_path / "a.json").read_text())["categories"]]
    assert names == list(CATEGORY_NAMES)
