import numpy as np
import pytest
from PIL import Image

from sepc_tf.data.formats import load_dataset
from sepc_tf.data.yolo import read_yolo
from sepc_tf.errors import DatasetError

pytestmark = pytest.mark.same_on_both_stacks

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def folder(tmp_path):
    """Two images of 200 x 100, the first with one dog."""
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (200, 100)).save(tmp_path / f"images/train/{name}.jpg")
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.2 0.4\n")
    (tmp_path / "data.yaml").write_text(YAML)
    return tmp_path


def test_a_line_is_centre_and_size_relative_to_the_image(folder):
    for path in (folder, folder / "data.yaml", str(folder)):
        content, image_dir, name = read_yolo(path)
        (annotation,) = content["annotations"]
        assert annotation["bbox"] == [80, 30, 40, 40] and annotation["area"] == 1600
        assert annotation["category_id"] == 1 and annotation["segmentation"] == []
        assert content["categories"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
        assert [image["file_name"] for image in content["images"]] == [
            "images/train/a.jpg",
            "images/train/b.jpg",
        ]
        assert (image_dir / "images/train/a.jpg").is_file()
        assert name == f"{folder / 'data.yaml'} (train)"
    dataset = load_dataset("yolo", folder, "train")
    np.testing.assert_array_equal(dataset.images[0].boxes, [[80, 30, 120, 70]])
    np.testing.assert_array_equal(dataset.images[0].labels, [1])
    assert len(dataset.images[1].boxes) == 0


@pytest.mark.parametrize(
    "text",
    [
        "names: {0: cat, 1: dog}\nnc: 2\ntrain: images/train\n",
        "names: [cat, dog]\ntrain: [images/train]\n",
        "names: [cat, dog]\ntrain: list.txt\n",
        "names: [cat, dog]\ntrain: ../images/train\n",  # as Roboflow writes it
        "path: .\nnames: [cat, dog]\ntrain: images\n",  # folders are searched to any depth
    ],
)
def test_every_way_to_name_classes_and_images(folder, text):
    (folder / "list.txt").write_text("./images/train/a.jpg\n\nimages/train/b.jpg\n")
    (folder / "data.yaml").write_text(text)
    content, _, _ = read_yolo(folder)
    assert [category["name"] for category in content["categories"]] == ["cat", "dog"]
    assert [image["file_name"][-5:] for image in content["images"]] == ["a.jpg", "b.jpg"]
    assert content["annotations"][0]["bbox"] == [80, 30, 40, 40]


def test_the_images_may_lie_elsewhere_and_the_labels_beside_them(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    Image.new("RGB", (10, 10)).save(other / "c.PNG")
    (other / "c.txt").write_text("0 .5 .5 1 1")
    (folder / "data.yaml").write_text(f"train: {[str(other), 'images/train']}\nnames: [cat, dog]\n")
    dataset = load_dataset("yolo", folder, "train")
    assert [image.file_name for image in dataset.images] == [
        str(other / "c.PNG"),
        "images/train/a.jpg",
        "images/train/b.jpg",
    ]
    np.testing.assert_array_equal(dataset.images[0].boxes, [[0, 0, 10, 10]])
    assert dataset.images[0].read().shape == (10, 10, 3)


def test_the_last_folder_named_images_is_the_one_beside_labels(tmp_path):
    root = tmp_path / "images" / "set"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    Image.new("RGB", (10, 10)).save(root / "images/a.b.jpg")
    (root / "labels/a.b.txt").write_text("0 .5 .5 1 1")
    (root / "data.yml").write_text("train: images\nnames: [cat]\n")
    assert read_yolo(root)[0]["annotations"][0]["bbox"] == [0, 0, 10, 10]


def test_boxes_belong_to_the_upright_image(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(folder / "images/train/a.jpg", exif=exif)
    dataset = load_dataset("yolo", folder, "train")
    assert (dataset.images[0].width, dataset.images[0].height) == (100, 200)
    np.testing.assert_array_equal(dataset.images[0].boxes, [[40, 60, 60, 140]])
    assert dataset.images[0].read().shape == (200, 100, 3)


def test_polygons_become_the_boxes_around_them(folder, caplog):
    text = "0 0.1 0.2 0.3 0.1 0.2 0.5\n1 0.5 0.5 0.2 0.4\n"
    (folder / "labels/train/a.txt").write_text(text)
    with caplog.at_level("INFO"):
        content, _, _ = read_yolo(folder)
    first, second = content["annotations"]
    assert first["bbox"] == [20, 10, 40, 40]
    assert first["segmentation"] == [[20, 20, 60, 10, 40, 50]]
    assert second["bbox"] == [80, 30, 40, 40] and second["segmentation"] == []
    assert "1 polygons, of which the boxes are taken" in caplog.text


def test_of_a_pose_the_box_is_taken(folder):
    (folder / "data.yaml").write_text(YAML + "kpt_shape: [2, 3]\n")
    (folder / "labels/train/a.txt").write_text("1 0.5 0.5 0.2 0.4 0.1 0.1 1 0.9 0.9 0\n")
    content, _, _ = read_yolo(folder)
    assert [annotation["bbox"] for annotation in content["annotations"]] == [[80, 30, 40, 40]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.5 0.5 0.2", "got 3 numbers after the class"),
        ("1 0.5 0.5 0.2 0.4 0.9", "got 5 numbers after the class"),  # with a confidence
        ("1", "got 0 numbers after the class"),
        ("2 0.5 0.5 0.2 0.4", "class 2 is none of 0 to 1"),
        ("-1 0.5 0.5 0.2 0.4", "class -1 is none of 0 to 1"),
        ("0.5 0.5 0.5 0.2 0.4", "class 0.5 is none of 0 to 1"),
        ("nan 0.5 0.5 0.2 0.4", "class nan is none of 0 to 1"),
        ("dog 0.5 0.5 0.2 0.4", "expected numbers, got 'dog 0.5"),
        ("1 100 50 40 40", "100 is not within 0..1; expected parts of"),
        ("1 0.5 0.5 nan 0.4", "nan is not within 0..1"),
        ("1 0.5 0.5 inf 0.4", "inf is not within 0..1"),
        ("1 0.5 0.5 -0.005 0.4", "the box has a negative size"),
    ],
)
def test_a_broken_line_is_named(folder, line, message):
    (folder / "labels/train/a.txt").write_text(f"0 0.5 0.5 1 1\n\n{line}\n")
    with pytest.raises(DatasetError) as error:
        read_yolo(folder)
    assert str(error.value).startswith(f"{folder / 'labels/train/a.txt'}, line 3: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "not valid YAML"),
        ("- train", "expected `key: value` lines, got list"),
        ("train: images/train", "names: expected the class names, a list, got None"),
        ("train: images/train\nnames: [yes]", "True is no name; put it in quotes"),
        ("train: images/train\nnames: [1.10]", "1.1 is no name; put it in quotes"),
        ("train: images/train\nnames: {1: cat, 2: dog}", "class numbers 0 to 1 as keys, got 1, 2"),
        ("train: images/train\nnames: [cat]\nnc: 3", "nc is 3, but names has 1 entries"),
        ("val: images/train\nnames: [cat]", "has no split 'train', only val"),
        ("train: images/nowhere\nnames: [cat]", "no folder and no list of images"),
        ("train: labels\nnames: [cat]", "there are no images"),
        ("path: nowhere\ntrain: images\nnames: [cat]", "path: nowhere: there is no folder"),
    ],
)
def test_a_broken_data_yaml_is_explained(folder, text, message):
    (folder / "data.yaml").write_text(text)
    with pytest.raises(DatasetError) as error:
        read_yolo(folder)
    assert str(error.value).startswith(f"{folder / 'data.yaml'}: ")
    assert message in str(error.value)


def test_a_missing_data_yaml_and_several_are_explained(folder):
    with pytest.raises(DatasetError, match=r"nowhere: .*no such file or folder"):
        read_yolo(folder / "nowhere")
    with pytest.raises(DatasetError, match=r"images: .*the folder has no \.yaml file"):
        read_yolo(folder / "images")
    (folder / "data.yaml").rename(folder / "one.yaml")
    assert read_yolo(folder)[2].endswith("one.yaml (train)")
    (folder / "two.yaml").write_text(YAML)
    with pytest.raises(DatasetError, match=r"the folder has one\.yaml, two\.yaml"):
        read_yolo(folder)


def test_images_without_a_size_and_a_layout_without_labels_are_explained(folder):
    (folder / "images/train/c.jpg").write_bytes(b"no image")
    (folder / "data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    (folder / "list.txt").write_text("images/train/c.jpg\nimages/train/gone.jpg\n")
    with pytest.raises(DatasetError, match=r"2 images cannot be read.*c\.jpg.*gone\.jpg: No such"):
        read_yolo(folder)
    (folder / "list.txt").write_text("images/train/b.jpg\n")
    with pytest.raises(DatasetError, match=r"none of the 1 images of train has.*train/b\.txt"):
        read_yolo(folder)
    (folder / "labels/train/a.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "list.txt").write_text("images/train/a.jpg\n")
    with pytest.raises(DatasetError, match=r"a\.txt: not a text file"):
        read_yolo(folder)
