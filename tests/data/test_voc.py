import time

import numpy as np
import pytest
from PIL import Image

from sepc_tf.data.formats import load_dataset
from sepc_tf.data.voc import VOC_CLASSES, read_voc
from sepc_tf.errors import DatasetError

pytestmark = pytest.mark.same_on_both_stacks

SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"
BOX = "<bndbox><xmin>11</xmin><ymin>1</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"


def obj(name="cat", box=BOX, rest=""):
    return f"<object><name>{name}</name>{box}{rest}</object>"


@pytest.fixture
def folder(tmp_path):
    """Three images of 60 x 40, of which a and b are in train."""
    for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / sub).mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (60, 40)).save(tmp_path / f"JPEGImages/{name}.jpg")
        write(tmp_path, name, SIZE)
    write(tmp_path, "a", SIZE + obj())
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("c\n")
    (tmp_path / "ImageSets/Main/cat_train.txt").write_text("a  1\nb -1\n")
    return tmp_path


def write(folder, name, text):
    (folder / f"Annotations/{name}.xml").write_text(f"<annotation>{text}</annotation>")


def test_boxes_count_from_1_and_include_both_ends(folder):
    # Painted and annotated pixel by pixel: columns 11 to 30 counted from 1, all rows.
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[1 - 1 : 40, 11 - 1 : 30] = 255
    Image.fromarray(pixels).save(folder / "JPEGImages/a.png")
    (folder / "JPEGImages/a.jpg").unlink()
    dataset = load_dataset("voc", folder, "train")
    (box,) = dataset.images[0].boxes.astype(int)
    x1, y1, x2, y2 = box
    image = dataset.images[0].read()
    assert (image[y1:y2, x1:x2] == 255).all() and image.sum() == image[y1:y2, x1:x2].sum()
    assert dataset.coco.anns[1]["bbox"] == [10, 0, 20, 40]
    assert dataset.coco.anns[1]["area"] == 800
    assert len(dataset.images[1].boxes) == 0


def test_classes_are_vocs_or_those_of_all_splits_or_those_given(folder):
    content, image_dir, name = read_voc(folder)
    assert [category["name"] for category in content["categories"]] == list(VOC_CLASSES)
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES) and len(VOC_CLASSES) == 20
    assert content["annotations"][0]["category_id"] == 1 + VOC_CLASSES.index("cat")
    assert (image_dir, name) == (folder / "JPEGImages", f"{folder} (train)")
    # Of val, and still a class of train: both need the same labels.
    write(folder, "c", SIZE + obj("ant"))
    for split in ("train", "val"):
        categories = read_voc(folder, split)[0]["categories"]
        assert categories == [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    content, _, _ = read_voc(folder, "train", ["dog", "cat"])
    assert content["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert content["annotations"][0]["category_id"] == 2
    with pytest.raises(DatasetError, match=r"c\.xml: object 1: the class 'ant' is none of dog, ca"):
        read_voc(folder, "val", ["dog", "cat"])


def test_difficult_objects_parts_and_sizes(folder):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    floats = BOX.replace(">11<", ">11.5<")
    write(
        folder,
        "a",
        SIZE.replace("60", "0")
        + obj(rest="<difficult>1</difficult>")
        + obj("person", floats, "<difficult>0</difficult>" + part),
    )
    write(folder, "b", "")
    content, _, _ = read_voc(folder)
    assert [annotation["iscrowd"] for annotation in content["annotations"]] == [1, 0]
    assert content["annotations"][1]["bbox"] == [10.5, 0, 19.5, 40]
    assert all((image["width"], image["height"]) == (60, 40) for image in content["images"])
    (folder / "JPEGImages/b.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"b\.jpg: cannot be read .*its XML file has no size"):
        read_voc(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (obj("", BOX), "object 1 has no <name>"),
        (obj("cat", ""), r"object 1 \(cat\) has no <bndbox>"),
        (obj() + obj("cat", BOX.replace("xmin", "x")), r"object 2 \(cat\): .* in <xmin>, got noth"),
        (obj("cat", BOX.replace("11", "nan")), r"object 1 \(cat\): .* in <xmin>, got 'nan'"),
        (obj("cat", BOX.replace("11", "1e")), r"object 1 \(cat\): .* in <xmin>, got '1e'"),
        (
            obj("cat", BOX.replace("11", "31")),
            r"object 1 \(cat\): xmax 30, ymax 40 come before xmin 31, ymin 1",
        ),
        (obj(rest="<difficult>no</difficult>"), "object 1: .* in <difficult>, got 'no'"),
        ("<size><width>60</width></size>", "size: .* in <height>, got nothing"),
    ],
)
def test_what_is_wrong_in_an_xml_is_named(folder, text, message):
    write(folder, "a", text)
    with pytest.raises(DatasetError, match=rf"Annotations/a\.xml: {message}"):
        read_voc(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.xml, line 1, column 1: broken XML \(no element found\)"),
        (
            b"<annotation>\n<object>\n</annotation>",
            r"line 3, column 3: broken XML \(mismatched tag",
        ),
        (b"<annotation>\xff</annotation>", r"line 1, column \d+: broken XML \(not well-formed"),
        (b"<html></html>", "expected an <annotation>, got a <html>"),
        (b'<?xml version="1.0" encoding="none"?><annotation/>', r"a\.xml"),
    ],
)
def test_broken_xml_is_named_with_its_line(folder, content, message):
    (folder / "Annotations/a.xml").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_voc(folder)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_not_expanded(folder, encoding):
    """A few hundred bytes that would become gigabytes, or read other files."""
    levels = [f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10)]
    bomb = f'<!DOCTYPE annotation [<!ENTITY a0 "{"x" * 50}">{"".join(levels)}]>'
    outside = '<!DOCTYPE annotation [<!ENTITY a9 SYSTEM "file:///etc/passwd">]>'
    for head in (bomb, outside):
        text = f'<?xml version="1.0" encoding="{encoding}"?>{head}<annotation>&a9;</annotation>'
        (folder / "Annotations/a.xml").write_bytes(text.encode(encoding))
        start = time.perf_counter()
        with pytest.raises(DatasetError, match=r"a\.xml: has a DOCTYPE"):
            read_voc(folder)
        assert time.perf_counter() - start < 5


def test_missing_pieces_are_named(folder):
    with pytest.raises(
        DatasetError, match=r"test\.txt: No such file.*splits there are: train, val"
    ):
        read_voc(folder, "test")
    with pytest.raises(DatasetError, match=r"cat_train\.txt, line 1: expected the name of an imag"):
        read_voc(folder, "cat_train")
    with pytest.raises(DatasetError, match=r"expected a Pascal VOC folder .*; did you mean "):
        read_voc(folder.parent)
    (folder / "ImageSets/Main/train.txt").write_text("a\nd\n")
    with pytest.raises(DatasetError, match=r"Annotations/d\.xml: No such file"):
        read_voc(folder)
    write(folder, "d", SIZE)
    with pytest.raises(DatasetError, match=r"train\.txt: d: there is no image of that name in"):
        read_voc(folder)
    (folder / "ImageSets/Main/train.txt").write_text("\n")
    with pytest.raises(DatasetError, match=r"train\.txt: names no image"):
        read_voc(folder)
