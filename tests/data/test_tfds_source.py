"""The builder of `coco/2017` itself prepares real COCO images, all but the download as it is."""

import json

import numpy as np
import pytest

from sepc_tf.config import Config
from sepc_tf.data.check import DatasetError
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.pipeline import BatchPipeline
from sepc_tf.data.sources import training_pipeline
from sepc_tf.data.tfds_source import COCO_CATEGORY_IDS, load_tfds
from sepc_tf.evaluation.coco import evaluate_detections

IMAGES = 12


@pytest.fixture(scope="module")
def sources(coco128_dir, tmp_path_factory):
    """(the folder as `CocoDataset`, data_dir of TensorFlow Datasets) with the same images."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.object_detection import coco

    root = tmp_path_factory.mktemp("tfds")
    content = json.loads((coco128_dir / "annotations/instances_train2017.json").read_text())
    crowded = {a["image_id"] for a in content["annotations"] if a["iscrowd"]}
    content["images"].sort(key=lambda image: (image["id"] not in crowded, image["id"]))
    del content["images"][IMAGES:]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (root / "annotations").mkdir()
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content))
    (root / "val2017").symlink_to(coco128_dir / "train2017")

    def only_local_files(self, dl_manager):
        del dl_manager  # would download
        kind = coco.AnnotationType.BBOXES
        return {"validation": self._generate_examples(str(root), str(root), "val2017", kind, None)}

    data_dir = root / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco.Coco, "_split_generators", only_local_files)
        tfds.builder("coco/2017", data_dir=data_dir).download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=3)
        )
    return CocoDataset.load(path, root / "val2017"), data_dir


def test_equals_the_folder(sources):
    folder, data_dir = sources
    stored = load_tfds(data_dir, "validation")
    assert stored.class_names == folder.class_names
    assert stored.category_ids == folder.category_ids == COCO_CATEGORY_IDS
    assert len(stored) == IMAGES
    by_id = {image.image_id: image for image in folder.images}
    for image in stored.images:
        expected = by_id[image.image_id]
        assert (image.file_name, image.width, image.height) == (
            expected.file_name,
            expected.width,
            expected.height,
        )
        np.testing.assert_allclose(image.boxes, expected.boxes, atol=0.0051)
        np.testing.assert_array_equal(image.labels, expected.labels)
        np.testing.assert_array_equal(image.read(), expected.read())
    assert {i: a["iscrowd"] for i, a in stored.coco.anns.items()} == {
        i: a["iscrowd"] for i, a in folder.coco.anns.items()
    }
    assert sum(a["iscrowd"] for a in stored.coco.anns.values()) > 0


def test_feeds_batches_and_evaluation(sources):
    stored = load_tfds(sources[1], "validation")
    pipeline = BatchPipeline(stored, batch_size=4, training=False, short_side=64, long_side=128)
    ids = np.concatenate([batch["image_ids"] for batch in pipeline.for_epoch()])
    assert sorted(ids[ids >= 0]) == [image.image_id for image in stored.images]
    truth = [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 1.0}
        for a in stored.coco.anns.values()
        if not a["iscrowd"]
    ]
    assert pytest.approx(1) == evaluate_detections(stored, truth).AP


def test_masks_that_are_not_stored_are_not_learnt(sources):
    config = Config()
    config.data.source = "tfds"
    stored = load_tfds(sources[1], "validation")
    with pytest.raises(DatasetError, match=r"no object has one.*stores no masks of COCO"):
        training_pipeline(stored, config, masks=True)


def test_what_is_missing_is_said(sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DatasetError, match=rf"\(data\.directory\) \(looked up from {tmp_path}\) is"
    ):
        load_tfds("relative", "train")
    with pytest.raises(DatasetError, match="not prepared: run `tfds build coco/2017 --data_dir="):
        load_tfds(tmp_path, "train")
    with pytest.raises(DatasetError, match="no split 'train', it has: validation"):
        load_tfds(sources[1], "train")
    with pytest.raises(DatasetError, match="tfds no_such_data"):
        load_tfds(tmp_path, "train", name="no_such_data")
