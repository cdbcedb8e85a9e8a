"""Reading data sets in YOLO's format, as Ultralytics lays them out, as COCO annotations.

A `data.yaml` names the classes and, for each split, folders of images or text files that list
images. The labels of `.../images/a/b.jpg` are in `.../labels/a/b.txt`, one object a line: the
number of its class, then centre x, centre y, width and height of its box, as parts of the upright
image's size, or instead of these four the corners x, y of a polygon.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from sepc_tf.config_files import parse_yaml
from sepc_tf.data.images import IMAGE_SUFFIXES, image_size
from sepc_tf.errors import DatasetError
from sepc_tf.progress import track

logger = logging.getLogger(__name__)

# How far from 0..1 a number may lie: labels are rounded.
TOLERANCE = 0.01


def read_yolo(path: str | Path, split: str = "train") -> tuple[dict, Path, str]:
    """Reads one split of a YOLO data set.

    An image without a label file, or with an empty one, has no objects. Of a polygon the box around
    it is taken; the polygon itself stays under `segmentation`. Of a pose label (`kpt_shape` in the
    `data.yaml`) the box is taken. Boxes are rounded to hundredths of a pixel, as COCO's are, which
    undoes the rounding of labels that were written with six decimals.

    Args:
        path: of the `data.yaml`, or of the folder it lies in.
        split: a key of it, usually "train", "val" or "test".

    Returns:
        (content, image folder, name): a dict with COCO's `images`, `annotations` and `categories`,
        whose category ids are YOLO's class numbers; the folder that its file names are relative to;
        and what stands for the data set in messages.

    Raises:
        DatasetError: naming the file, and the line of a label file, that cannot be used.

    Example:
        >>> content, image_dir, name = read_yolo("yolo_data", "val")
        >>> name
        'yolo_data/data.yaml (val)'
    """
    data_yaml = _data_yaml(Path(path))
    data = _read_yaml(data_yaml)
    names = _class_names(data, data_yaml)
    root = _root(data, data_yaml)
    files = _image_files(data, split, root, data_yaml)
    images, annotations, labelled, polygons = [], [], 0, 0
    for number, (file, (height, width)) in enumerate(zip(files, _sizes(files)), start=1):
        file_name = str(file.relative_to(root) if file.is_relative_to(root) else file)
        images.append({"id": number, "file_name": file_name, "width": width, "height": height})
        label_file = _label_file(file)
        lines = _lines(label_file)
        labelled += lines is not None
        for line_number, line in enumerate(lines or [], start=1):
            if not line.strip():
                continue
            where = f"{label_file}, line {line_number}"
            category, numbers = _parsed(line, len(names), where)
            if "kpt_shape" in data:
                numbers = numbers[:4]
            annotation = _annotation(numbers, width, height, where)
            polygons += bool(annotation["segmentation"])
            annotation["id"] = len(annotations) + 1
            annotation["image_id"] = number
            annotation["category_id"] = category
            annotations.append(annotation)
    if not labelled:
        raise DatasetError(
            f"{data_yaml}: none of the {len(files)} images of {split} has a label file, as "
            f"{_label_file(files[0])}"
        )
    if polygons:
        logger.info("%s: %d polygons, of which the boxes are taken", data_yaml, polygons)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    return content, root, f"{data_yaml} ({split})"


# The data.yaml --------------------------------------------------------------------------------


def _data_yaml(path):
    if path.is_file():
        return path
    found = sorted({*path.glob("*.yaml"), *path.glob("*.yml")})
    named = [file for file in found if file.stem == "data"]
    if len(named or found) != 1:
        listed = ", ".join(file.name for file in found) or "no .yaml file"
        raise DatasetError(
            f"{path}: expected a YOLO data.yaml or its folder; "
            + (f"the folder has {listed}" if path.is_dir() else "no such file or folder")
        )
    return (named or found)[0]


def _read_yaml(data_yaml):
    try:
        data = parse_yaml(data_yaml.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{data_yaml}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{data_yaml}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{data_yaml}: expected `key: value` lines, got {type(data).__name__}")
    return data


def _class_names(data, data_yaml):
    names = data.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DatasetError(
                f"{data_yaml}: names: expected the class numbers 0 to {len(names) - 1} as keys, "
                f"got {', '.join(map(str, names))}"
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{data_yaml}: names: expected the class names, a list, got {names!r}")
    wrong = [name for name in names if not isinstance(name, str | int) or isinstance(name, bool)]
    if wrong:
        raise DatasetError(f"{data_yaml}: names: {wrong[0]!r} is no name; put it in quotes")
    if data.get("nc", len(names)) != len(names):
        raise DatasetError(f"{data_yaml}: nc is {data['nc']}, but names has {len(names)} entries")
    return [str(name) for name in names]


def _root(data, data_yaml):
    """The folder that the splits are relative to."""
    root = (data_yaml.parent / str(data.get("path") or "")).resolve()
    if not root.is_dir():
        raise DatasetError(
            f"{data_yaml}: path: {data['path']}: there is no folder {root} (a relative path is "
            "taken from the folder of the file)"
        )
    return root


# The images -----------------------------------------------------------------------------------


def _image_files(data, split, root, data_yaml):
    places = data.get(split)
    if not places:
        splits = [key for key in ("train", "val", "test") if data.get(key)]
        raise DatasetError(f"{data_yaml}: has no split {split!r}, only {', '.join(splits)}")
    files = []
    for place in places if isinstance(places, list) else [places]:
        path = root / str(place)
        if not path.exists() and str(place).startswith("../"):  # as Roboflow writes them
            path = root / str(place)[3:]
        if path.is_dir():
            found = path.rglob("*")
            files += sorted(file for file in found if file.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            lines = _lines(path)
            files += [path.parent / line.strip() for line in lines if line.strip()]
        else:
            raise DatasetError(
                f"{data_yaml}: {split}: {place}: there is no folder and no list of images {path}"
            )
    if not files:
        raise DatasetError(f"{data_yaml}: {split}: {places}: there are no images")
    return [Path(os.path.normpath(file)) for file in files]


def _sizes(files):
    """(height, width) of every image, from its header alone."""

    def examine(file):
        try:
            return image_size(file)
        except Exception as error:  # a damaged header ends in many kinds of error
            return f"{file}: {getattr(error, 'strerror', None) or error}"

    with ThreadPoolExecutor() as pool:
        results = list(track(pool.map(examine, files), len(files), "reading image sizes"))
    broken = [result for result in results if isinstance(result, str)]
    if broken:
        raise DatasetError(
            f"{len(broken)} images cannot be read, and their labels need the image's size; mend or "
            f"remove them, for example {'; '.join(broken[:3])}"
        )
    return results


# The labels -----------------------------------------------------------------------------------


def _label_file(image_file):
    head, separator, tail = str(image_file).rpartition(f"{os.sep}images{os.sep}")
    if separator:
        image_file = f"{head}{os.sep}labels{os.sep}{tail}"
    return Path(image_file).with_suffix(".txt")


def _lines(path):
    """The lines of a text file, None where there is none."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise DatasetError(f"{path}: {reason}") from error


def _parsed(line, num_classes, where):
    """(class number, numbers) of a line."""
    try:
        category, *numbers = map(float, line.split())
    except ValueError as error:
        raise DatasetError(f"{where}: expected numbers, got {line.strip()!r}") from error
    if category not in range(num_classes):
        raise DatasetError(
            f"{where}: class {line.split()[0]} is none of 0 to {num_classes - 1}, the classes that "
            "names in the data.yaml has"
        )
    wrong = [number for number in numbers if not -TOLERANCE <= number <= 1 + TOLERANCE]
    if wrong:
        raise DatasetError(
            f"{where}: {wrong[0]:g} is not within 0..1; expected parts of the image's width and "
            "height, not pixels"
        )
    return int(category), numbers


def _annotation(numbers, width, height, where):
    """Box, area and polygon in pixels."""
    if len(numbers) == 4:
        x, y, w, h = numbers
        corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        polygon = []
    elif len(numbers) >= 6 and len(numbers) % 2 == 0:
        corners = [min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])]
        sizes = [width, height] * (len(numbers) // 2)
        polygon = [round(number * size, 2) for number, size in zip(numbers, sizes)]
    else:
        raise DatasetError(
            f"{where}: expected a class, and 4 numbers (centre x, centre y, width, height) or the "
            f"x, y of at least 3 corners; got {len(numbers)} numbers after the class"
        )
    x1, y1, x2, y2 = (value * size for value, size in zip(corners, [width, height] * 2))
    if x2 < x1 or y2 < y1:
        raise DatasetError(f"{where}: the box has a negative size")
    box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
    return {
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [polygon] if polygon else [],
    }
