import json
import logging

import numpy as np
import pytest
from PIL import Image

from sepc_tf.data.check import DatasetError
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.images import UnreadableImageError

pytestmark = pytest.mark.same_on_both_stacks


def write(root, annotations, categories=({"id": 9, "name": "nine"}, {"id": 4, "name": "four"})):
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", (60, 40)).save(root / "images" / "a.jpg")
    Image.new("RGB", (60, 40)).save(root / "images" / "b.jpg")
    content = {
        "images": [
            {"id": 30, "file_name": "a.jpg", "width": 60, "height": 40},
            {"id": 20, "file_name": "b.jpg", "width": 60, "height": 40},
        ],
        "annotations": [{"id": i + 1, "image_id": 30, **a} for i, a in enumerate(annotations)],
        "categories": list(categories),
    }
    (root / "a.json").write_text(json.dumps(content))
    return root / "a.json", root / "images"


def test_labels_are_contiguous_and_boxes_are_xyxy(tmp_path):
    dataset = CocoDataset.load(
        *write(
            tmp_path,
            [
                {"category_id": 9, "bbox": [1.5, 2, 10, 20], "area": 150, "iscrowd": 0},
                {"category_id": 4, "bbox": [50, 30, 20.5, 20]},  # no area, no iscrowd; sticks out
            ],
        )
    )
    assert dataset.class_names == ("four", "nine") and dataset.category_ids == (4, 9)
    assert dataset.num_classes == 2 and len(dataset) == 2
    first, second = dataset.images
    assert (first.image_id, second.image_id) == (30, 20), "in the order of the file"
    np.testing.assert_array_equal(first.boxes, [[1.5, 2, 11.5, 22], [50, 30, 60, 40]])
    np.testing.assert_array_equal(first.labels, [1, 0])
    assert first.boxes.dtype == np.float32 and first.labels.dtype == np.int32
    assert second.boxes.shape == (0, 4) and second.labels.shape == (0,)
    assert first.read().shape == (40, 60, 3)
    # What evaluation needs is there, the box itself unclipped.
    truth = dataset.coco.anns[2]
    assert truth["iscrowd"] == 0 and truth["area"] == 410 and truth["bbox"][2] == 20.5
    assert dataset.file_names([20, -1, 30]) == ["b.jpg", "a.jpg"]


def test_crowd_and_degenerate_boxes_are_not_trained_on_but_stay_in_the_truth(tmp_path, caplog):
    box = {"category_id": 4, "bbox": [1, 2, 10, 20], "area": 150}
    with caplog.at_level(logging.WARNING):
        dataset = CocoDataset.load(
            *write(
                tmp_path,
                [
                    {**box, "iscrowd": 1},
                    {**box, "bbox": [1, 2, 0.9, 20]},
                    {**box, "bbox": [1, 2, 20, 0]},
                    {**box, "area": 0},
                    {**box, "bbox": [60, 2, 20, 20]},
                    box,
                ],
            )
        )
    assert len(dataset.images[0].boxes) == 1 and len(dataset.coco.anns) == 6
    assert "3 x degenerate box" in caplog.text and "1 x box outside image" in caplog.text


def test_data_set_with_errors_is_refused_with_all_of_them(tmp_path):
    box = {"category_id": 4, "bbox": [1, 2, 10, 20]}
    paths = write(tmp_path, [box, {**box, "category_id": 5}])
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(DatasetError) as error:
        CocoDataset.load(*paths)
    assert "a.json cannot be used" in str(error.value)
    assert "1 x missing image" in str(error.value) and "b.jpg" in str(error.value)
    assert "1 x unknown category" in str(error.value) and "category 5" in str(error.value)
    with pytest.raises(DatasetError, match="nowhere: No such file"):
        CocoDataset.load(tmp_path / "nowhere", tmp_path)
    with pytest.raises(DatasetError, match=r"image folder .*nowhere"):
        CocoDataset.load(paths[0], tmp_path / "nowhere")


def test_subsets(tmp_path):
    dataset = CocoDataset.load(*write(tmp_path, [{"category_id": 4, "bbox": [1, 2, 10, 20]}]))
    assert [image.image_id for image in dataset.without_empty_images().images] == [30]
    assert [image.image_id for image in dataset.first(1).images] == [30]
    with pytest.raises(ValueError, match=r"count must be in 1\.\.2, got 3"):
        dataset.first(3)
    empty = CocoDataset.load(*write(tmp_path, []))
    with pytest.raises(DatasetError, match="no image has a box"):
        empty.without_empty_images()


def test_nothing_or_little_to_train_on_is_said(tmp_path):
    def check(*boxes):
        annotations = [{"category_id": 4, "bbox": box} for box in boxes]
        annotations.append({"category_id": 4, "bbox": [0, 0, 30, 30], "iscrowd": 1})
        content = json.loads(write(tmp_path, annotations)[0].read_text())
        CocoDataset.from_content(content, lambda name: None, "made up").check_trainable()

    good, narrow, outside = [1, 2, 10, 20], [1, 2, 0.5, 20], [60, 2, 20, 20]
    check(good)
    check(good, narrow)
    with pytest.raises(
        DatasetError, match=r"made up: 2 of its 3 boxes are dropped .* remove these"
    ):
        check(good, narrow, outside)
    with pytest.raises(DatasetError, match="no box to train on: 2 of its 2 boxes are dropped"):
        check(narrow, outside)
    with pytest.raises(DatasetError, match="made up: there is no box to train on, only images"):
        check()


def test_image_of_another_size_than_annotated_is_unreadable(tmp_path):
    dataset = CocoDataset.load(*write(tmp_path, []))
    Image.new("RGB", (40, 60)).save(tmp_path / "images" / "a.jpg")
    Image.new("RGB", (60, 41)).save(tmp_path / "images" / "b.jpg")
    message = r"a\.jpg: annotated 60 x 40, is 40 x 60 \(is the EXIF"
    with pytest.raises(UnreadableImageError, match=message):
        dataset.images[0].read()
    with pytest.raises(UnreadableImageError, match=r"b\.jpg: annotated 60 x 40, is 60 x 41$"):
        dataset.images[1].read()


def test_unreadable_image_is_named(tmp_path):
    dataset = CocoDataset.load(*write(tmp_path, []))
    (tmp_path / "images" / "a.jpg").unlink()
    (tmp_path / "images" / "b.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UnreadableImageError, match=r"a\.jpg: No such file"):
        dataset.images[0].read()
    with pytest.raises(UnreadableImageError, match=r"b\.jpg: "):
        dataset.images[1].read()


def test_real_coco_counts(coco128_dir):
    dataset = CocoDataset.load(
        coco128_dir / "annotations" / "instances_train2017.json", coco128_dir / "train2017"
    )
    crowds = sum(a["iscrowd"] for a in dataset.coco.anns.values())
    assert len(dataset) == 128 and dataset.num_classes == 80 and crowds == 10
    assert dataset.class_names[0] == "person" and dataset.category_ids[-1] == 90
    assert sum(len(image.boxes) for image in dataset.images) == len(dataset.coco.anns) - crowds
    for image in dataset.images:
        assert (image.boxes >= 0).all()
        assert (image.boxes <= [image.width, image.height] * 2).all()
        assert (image.boxes[:, 2:] > image.boxes[:, :2]).all()
