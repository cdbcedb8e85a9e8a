"""The same data as COCO, YOLO and Pascal VOC gives the same data set and the same batches."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from dataset_layouts import write_voc, write_yolo
from PIL import Image

from sepc_tf.config import Config, load_config
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.config import DataConfig, SplitConfig
from sepc_tf.data.demo import CATEGORY_NAMES, make_demo_dataset
from sepc_tf.data.formats import check_dataset_of, load_dataset
from sepc_tf.data.sources import load_split, training_pipeline
from sepc_tf.errors import ConfigError, DatasetError
from sepc_tf.evaluation.coco import evaluate_detections

pytestmark = pytest.mark.same_on_both_stacks

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """DataConfigs of one data set in three formats."""
    root = tmp_path_factory.mktemp("formats")
    demo = make_demo_dataset(root / "demo", train_images=10, val_images=4, seed=3)
    splits = {s: (demo / f"annotations/instances_{s}.json", demo / s) for s in SPLITS}
    coco = DataConfig(
        source="coco",
        train=SplitConfig(*map(str, splits["train"])),
        val=SplitConfig(*map(str, splits["val"])),
    )
    yolo = DataConfig(source="yolo", directory=str(write_yolo(root / "yolo", splits)))
    voc = DataConfig(
        source="voc",
        directory=str(write_voc(root / "voc", splits)),
        class_names=list(CATEGORY_NAMES),
    )
    return {"coco": coco, "yolo": yolo, "voc": voc}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("source", ["yolo", "voc"])
def test_the_data_set_is_the_same(places, source, split):
    expected, actual = (load_split(places[name], split) for name in ("coco", source))
    assert actual.class_names == expected.class_names
    assert len(actual) == len(expected)
    assert sum(len(image.boxes) for image in expected.images) > 5
    for ours, theirs in zip(actual.images, expected.images):
        assert (ours.width, ours.height) == (theirs.width, theirs.height)
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.read(), theirs.read())


@pytest.mark.parametrize("source", ["yolo", "voc"])
def test_batches_are_the_same(places, source):
    first = {}
    for name in ("coco", source):
        config = Config(data=places[name])
        config.data.short_side, config.data.long_side = [96], 128
        config.train.batch_size = 4
        pipeline = training_pipeline(load_split(config.data, "train"), config)
        first[name] = next(iter(pipeline.training_batches()))
    assert (first["coco"]["labels"] >= 0).numpy().any()
    for key, value in first["coco"].items():
        if key != "image_ids":  # the formats have none
            np.testing.assert_array_equal(value, first[source][key], key)


@pytest.mark.parametrize(
    "source, message",
    [
        ("yolo", "no object has one.*at least 3 corners"),
        ("voc", "no object has one.*not its SegmentationObject"),
    ],
)
def test_boxes_without_masks_are_refused_where_masks_are_learnt(places, source, message):
    config = Config(data=places[source])
    with pytest.raises(DatasetError, match=message):
        training_pipeline(load_split(config.data, "train"), config, masks=True)


def test_polygons_of_yolo_give_the_masks_of_cocos(tmp_path):
    corners = ([10, 8, 50, 12, 40, 44], [60, 30, 100, 30, 100, 60, 80, 70, 60, 60])
    boxes = ([10, 8, 40, 36], [60, 30, 40, 40])
    for folder in ("images", "labels"):
        (tmp_path / folder / "train").mkdir(parents=True)
    Image.new("RGB", (128, 80)).save(tmp_path / "images" / "train" / "a.png")
    rows = [" ".join(str(v / (128, 80)[i % 2]) for i, v in enumerate(c)) for c in corners]
    (tmp_path / "labels" / "train" / "a.txt").write_text("\n".join(f"0 {row}" for row in rows))
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [a]\n")
    content = {
        "images": [{"id": 1, "file_name": "images/train/a.png", "width": 128, "height": 80}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": [polygon]}
            for i, (box, polygon) in enumerate(zip(boxes, corners))
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    config = Config()
    config.data.short_side, config.data.flip_probability, config.train.batch_size = [100], 0.0, 1
    coco = CocoDataset.load(tmp_path / "coco.json", tmp_path)
    yolo = load_dataset("yolo", tmp_path / "data.yaml", "train")
    ours, theirs = (
        next(iter(training_pipeline(dataset, config, masks=True).for_epoch()))
        for dataset in (yolo, coco)
    )
    assert theirs["bitmaps"].numpy().sum() > 1000 and (theirs["offsets"] >= 0).numpy().all()
    for name in ("boxes", "labels", "bitmaps", "frames", "offsets"):
        np.testing.assert_array_equal(ours[name], theirs[name], name)


def test_real_photographs_survive_the_six_decimals_of_yolo(coco128_dir, tmp_path):
    """To the hundredth of a pixel to which COCO's boxes are given."""
    paths = coco128_dir / "annotations/instances_train2017.json", coco128_dir / "train2017"
    expected = CocoDataset.load(*paths)
    actual = load_dataset("yolo", write_yolo(tmp_path, {"train": paths}), "train")
    assert actual.class_names == expected.class_names
    by_name = {image.file_name.split("/")[-1]: image for image in actual.images}
    for image in expected.images:
        ours = by_name[image.file_name]
        assert (ours.width, ours.height) == (image.width, image.height)
        of_ours = actual.coco.imgToAnns[ours.image_id]
        of_image = expected.coco.imgToAnns[image.image_id]
        assert len(of_ours) == len(of_image)
        for found, annotated in zip(of_ours, of_image):
            np.testing.assert_allclose(found["bbox"], annotated["bbox"], rtol=0, atol=0.0101)


def test_difficult_objects_are_ignored_by_training_and_evaluation(places, tmp_path):
    """VOC's own evaluation neither wants them found nor counts a detection on them."""
    source = places["coco"].val
    content = json.loads(Path(source.annotations).read_text())
    hard, *rest = content["annotations"]
    hard["iscrowd"] = 1
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(content))
    images = places["coco"].val.images
    root = write_voc(tmp_path / "voc", {"val": (changed, Path(images))})
    dataset = load_dataset("voc", root, "val", list(CATEGORY_NAMES))
    assert sum(len(image.boxes) for image in dataset.images) == len(rest)
    assert dataset.coco.anns[hard["id"]]["difficult"] == 1

    def detections(annotations):
        keys = ("image_id", "category_id", "bbox")
        return [{**{key: a[key] for key in keys}, "score": 0.5} for a in annotations]

    assert pytest.approx(1) == evaluate_detections(dataset, detections(rest)).AP
    on_it = {**detections([hard])[0], "score": 0.9}
    assert pytest.approx(1) == evaluate_detections(dataset, [on_it, *detections(rest)]).AP


@pytest.mark.parametrize("source", ["yolo", "voc"])
def test_check_finds_what_is_wrong(places, source, tmp_path):
    data = places[source]

    def check(**options):
        return check_dataset_of(source, data.directory, "train", data.class_names, **options)

    report = check()
    assert not report.problems and report.decoded
    assert (report.num_images, report.num_categories) == (10, 10)
    assert report.num_annotations == len(load_split(data, "train").coco.anns)
    assert check(decode=False).num_images == 10
    broken = check_dataset_of(source, tmp_path, "train")
    assert [problem.kind for problem in broken.errors] == ["unusable annotation file"]


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (
            "yolo",
            {"train.annotations": "a.json"},
            r"data\.train\.annotations: 'a\.json' has no eff",
        ),
        ("yolo", {"class_names": ["a"]}, r"data\.class_names: \['a'\] has no effect on data\.sour"),
        ("voc", {"val.images": "b"}, r"data\.val\.images: 'b' has no effect on data\.source: voc"),
        ("coco", {"directory": "c"}, r"data\.directory: 'c' has no effect on data\.source: coco"),
        ("coco", {"val.split": "val"}, r"data\.val\.split: 'val' has no effect"),
        ("voc", {"directory": None}, r"data\.directory is not set; data\.source: voc needs it"),
        ("yolo", {"directory": None}, r"data\.directory is not set; data\.source: yolo needs it"),
    ],
)
def test_settings_that_do_not_apply_or_are_missing_are_named(places, source, changes, message):
    data = copy.deepcopy(places[source])
    for key, value in changes.items():
        *parents, name = key.split(".")
        setattr(getattr(data, parents[0]) if parents else data, name, value)
    with pytest.raises(ConfigError, match=message):
        load_split(data, "train")


def test_the_settings_can_be_written_in_a_config(places, tmp_path):
    (tmp_path / "a.yaml").write_text(
        f"data:\n  source: voc\n  directory: {places['voc'].directory}\n"
        f"  class_names: {list(CATEGORY_NAMES)}\n  val: {{split: train}}\n"
    )
    data = load_config(tmp_path / "a.yaml").data
    assert len(load_split(data, "val")) == len(load_split(data, "train")) == 10
    with pytest.raises(DatasetError, match=r"trainval\.txt: No such file.*splits there are: tra"):
        load_split(load_config(tmp_path / "a.yaml", ["data.train.split=trainval"]).data, "train")
