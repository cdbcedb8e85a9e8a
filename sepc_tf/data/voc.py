"""Reading data sets in Pascal VOC's format as COCO annotations.

A folder as `VOCdevkit/VOC2007`: `Annotations/NAME.xml`, `JPEGImages/NAME.jpg`, and
`ImageSets/Main/SPLIT.txt` with one NAME a line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from sepc_tf.data.images import IMAGE_SUFFIXES, image_size
from sepc_tf.errors import DatasetError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

MAX_XML_BYTES = 2**24


def read_voc(
    path: str | Path, split: str = "train", class_names: list[str] | None = None
) -> tuple[dict, Path, str]:
    """Reads one split of a Pascal VOC data set.

    VOC counts pixels from 1 and includes both ends; a box becomes
    `x = xmin - 1, y = ymin - 1, width = xmax - xmin + 1, height = ymax - ymin + 1`, which covers
    the same pixels where the image begins at 0 and a pixel is 1 wide.

    Objects marked `difficult` get `iscrowd: 1` (and keep `difficult: 1`). It is the one mark with
    which pycocotools does what VOC's own evaluation does: the object need not be found, and a
    detection on it is no false one. They are not trained on. The difference: on a crowd several
    detections may lie, and the overlap is measured as a part of the detection alone.

    Args:
        path: the folder.
        split: name of a list in `ImageSets/Main`, usually "train", "val", "trainval" or "test".
        class_names: the classes in the order of their labels. By default those of all files in
            `Annotations`, of every split: VOC's 20 where there are no others, else sorted by name.

    Returns:
        (content, image folder, name): a dict with COCO's `images`, `annotations` and `categories`,
        whose ids count from 1; the folder that its file names are relative to; and what stands for
        the data set in messages.

    Raises:
        DatasetError: naming the file, and the line of broken XML, that cannot be used.

    Example:
        >>> content, image_dir, name = read_voc("voc_data", "val")
        >>> content["categories"][0]
        {'id': 1, 'name': 'eight'}
    """
    path = Path(path)
    folder = path / "Annotations"
    if not folder.is_dir():
        inside = ", ".join(sorted(str(f.parent) for f in path.glob("*/Annotations")))
        raise DatasetError(
            f"{path}: expected a Pascal VOC folder with Annotations, JPEGImages and ImageSets/Main"
            + (f"; did you mean {inside}?" if inside else "")
        )
    list_file, names = _split_names(path, split)
    parsed = {}
    if class_names is None:
        parsed = {file.stem: _read_xml(file) for file in sorted(folder.glob("*.xml"))}
        found = {item.name for _, objects in parsed.values() for item in objects}
        class_names = VOC_CLASSES if found <= {*VOC_CLASSES} else sorted(found)
    category_ids = {name: number for number, name in enumerate(class_names, start=1)}
    file_of = _image_files(path / "JPEGImages")
    images, annotations = [], []
    for image_id, name in enumerate(names, start=1):
        xml = folder / f"{name}.xml"
        size, objects = parsed[name] if name in parsed else _read_xml(xml)
        if name not in file_of:
            raise DatasetError(
                f"{list_file}: {name}: there is no image of that name in {path / 'JPEGImages'}"
            )
        width, height = size or _size_of(path / "JPEGImages" / file_of[name])
        images.append(
            {"id": image_id, "file_name": file_of[name], "width": width, "height": height}
        )
        for number, item in enumerate(objects, start=1):
            if item.name not in category_ids:
                raise DatasetError(
                    f"{xml}: object {number}: the class {item.name!r} is none of "
                    f"{', '.join(class_names)}"
                )
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[item.name],
                    "bbox": item.bbox,
                    "area": item.bbox[2] * item.bbox[3],
                    "iscrowd": item.difficult,
                    "difficult": item.difficult,
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in category_ids.items()],
    }
    return content, path / "JPEGImages", f"{path} ({split})"


@dataclass(frozen=True)
class _Object:
    """One `object` of an XML file: its class, its box as COCO's xywh, and whether it is hard."""

    name: str
    bbox: list
    difficult: int


def _split_names(path, split):
    """The list file of a split, and the names in it."""
    file = path / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        others = sorted(f.stem for f in file.parent.glob("*.txt") if "_" not in f.stem)
        others = ", ".join(others) or "none"
        raise DatasetError(
            f"{file}: {error.strerror or error}; the splits there are: {others}"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: not a text file") from error
    for number, line in enumerate(lines, start=1):
        if len(line.split()) > 1:
            raise DatasetError(
                f"{file}, line {number}: expected the name of an image, got {line.strip()!r} (a "
                "list for one class alone?)"
            )
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DatasetError(f"{file}: names no image")
    return file, names


def _image_files(folder):
    """File name of each image by its name without ending; a .jpg before others of that name."""
    try:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise DatasetError(f"{folder}: {error.strerror or error}") from error
    files.sort(key=lambda file: file.suffix.lower() == ".jpg")
    return {file.stem: file.name for file in files}


def _size_of(file):
    try:
        height, width = image_size(file)
    except Exception as error:  # a damaged header ends in many kinds of error
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(
            f"{file}: cannot be read ({reason}), and its XML file has no size"
        ) from error
    return width, height


class _NoDoctype(ElementTree.TreeBuilder):
    """A document type can define entities, which blow up a small file; VOC's files have none."""

    def doctype(self, name, pubid, system):
        raise ValueError("has a DOCTYPE, which annotations have no use for; it is not read")


def _read_xml(file):
    """((width, height) or None, objects) of an XML file."""
    try:
        if file.stat().st_size > MAX_XML_BYTES:
            raise ValueError(f"is larger than {MAX_XML_BYTES} bytes")
        parser = ElementTree.XMLParser(target=_NoDoctype())
        root = ElementTree.fromstring(file.read_bytes(), parser)
    except OSError as error:
        raise DatasetError(f"{file}: {error.strerror or error}") from error
    except ElementTree.ParseError as error:
        line, column = error.position
        reason = str(error).partition(":")[0]
        raise DatasetError(
            f"{file}, line {line}, column {column + 1}: broken XML ({reason})"
        ) from error
    except (ValueError, LookupError) as error:  # ours; an encoding that is unknown
        raise DatasetError(f"{file}: {error}") from error
    if root.tag != "annotation":
        raise DatasetError(f"{file}: expected an <annotation>, got a <{root.tag}>")
    objects = [
        _read_object(element, f"{file}: object {number}")
        for number, element in enumerate(root.findall("object"), start=1)
    ]
    size = root.find("size")
    if size is None:
        return None, objects
    width, height = (_number(size, side, f"{file}: size") for side in ("width", "height"))
    # Some tools write 0 x 0 where they do not know.
    return (int(width), int(height)) if min(width, height) > 0 else None, objects


def _read_object(element, where):
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DatasetError(f"{where} has no <name>")
    box = element.find("bndbox")
    if box is None:
        raise DatasetError(f"{where} ({name}) has no <bndbox>")
    x1, y1, x2, y2 = (
        _number(box, t, f"{where} ({name})") for t in ("xmin", "ymin", "xmax", "ymax")
    )
    if x2 < x1 or y2 < y1:
        raise DatasetError(
            f"{where} ({name}): xmax {x2:g}, ymax {y2:g} come before xmin {x1:g}, ymin {y1:g}"
        )
    hard = element.find("difficult") is not None and _number(element, "difficult", where) != 0
    return _Object(name, [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], int(hard))


def _number(element, tag, where):
    text = element.findtext(tag)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        got = "nothing" if text is None else repr(text)
        raise DatasetError(f"{where}: expected a number in <{tag}>, got {got}")
    return value
