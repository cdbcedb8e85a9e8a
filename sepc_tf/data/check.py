"""What is wrong with a data set in COCO format: the cheap part before training, or all of it."""

import logging
import math
import os
import re
import reprlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sepc_tf.data.images import deep_peak, read_image
from sepc_tf.data.segmentations import FAULTS, mask_fault
from sepc_tf.errors import DatasetError, UnreadableImageError
from sepc_tf.files import read_json
from sepc_tf.progress import track

logger = logging.getLogger(__name__)

ERROR, WARNING = "error", "warning"
MAX_EXAMPLES = 3
# How far a box may stick out of its image before it is worth a line: annotations are rounded.
OUTSIDE_TOLERANCE = 1.0
FEWEST_TO_JUDGE = 5  # boxes from which their format is guessed


@dataclass
class Problem:
    """One kind of problem: its severity, what it is, how often it occurs, a few places."""

    severity: str
    kind: str
    consequence: str
    count: int = 0
    examples: list = field(default_factory=list)

    def add(self, example):
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(str(example))


@dataclass(frozen=True)
class DatasetReport:
    """What `check_dataset` found.

    Attributes:
        annotations_json: the file checked.
        num_images, num_annotations, num_categories: its counts.
        images_without_boxes: number of images without an annotation; legal, hence no problem.
        decoded: whether the image files were decoded, or only looked for.
        problems: list of `Problem`, errors first.
    """

    annotations_json: str
    num_images: int
    num_annotations: int
    num_categories: int
    images_without_boxes: int
    decoded: bool
    problems: list

    @property
    def errors(self):
        return [problem for problem in self.problems if problem.severity == ERROR]

    @property
    def warnings(self):
        return [problem for problem in self.problems if problem.severity == WARNING]

    def table(self):
        """The report as a `rich.table.Table`."""
        from rich.table import Table

        table = Table(
            title=f"{self.annotations_json}: {self.num_images} images "
            f"({self.images_without_boxes} without boxes), {self.num_annotations} annotations, "
            f"{self.num_categories} categories",
            caption="images decoded" if self.decoded else "images looked for, not decoded",
        )
        for name, justify in (("severity", "left"), ("count", "right"), ("problem", "left")):
            table.add_column(name, justify=justify)
        table.add_column("consequence")
        table.add_column("for example", overflow="fold")
        for problem in self.problems:
            table.add_row(
                f"[{'bold red' if problem.severity == ERROR else 'yellow'}]{problem.severity}",
                str(problem.count),
                problem.kind,
                problem.consequence,
                "\n".join(problem.examples).replace("[", r"\["),
            )
        if not self.problems:
            table.add_row("[green]ok", "0", "none found", "", "")
        return table


def read_annotations(annotations_json):
    """The content of a COCO annotation file, with its three lists present and well formed.

    Args:
        annotations_json: path of the file.

    Returns:
        The dict; `images`, `annotations` and `categories` are lists of dicts that have every key
        used here, with values of the right type. What the values say is not checked.

    Raises:
        DatasetError: naming the file and the entry.

    Example:
        >>> len(read_annotations("demo_data/annotations/instances_val.json")["images"])
        4
    """
    try:
        content = read_json(annotations_json)
    except OSError as error:
        raise DatasetError(f"{annotations_json}: {error.strerror or error}") from error
    except ValueError as error:
        size = os.path.getsize(annotations_json)
        reason = f"not JSON ({error})" if size else "the file is empty"
        raise DatasetError(f"{annotations_json}: {reason}") from error
    return validate_annotations(content, annotations_json)


def validate_annotations(content, name="annotations"):
    """`read_annotations` for content already in memory; `name` stands for the file in errors."""
    if not isinstance(content, dict):
        raise DatasetError(
            f"{name}: expected an object with images, annotations and categories, "
            f"got a {type(content).__name__}"
        )
    for key, fields in _FIELDS.items():
        entries = content.get(key)
        if not isinstance(entries, list):
            expected = ", ".join(_FIELDS)
            raise DatasetError(
                f"{name}: key '{key}' is "
                f"{'missing' if entries is None else 'not a list'} (expected lists {expected}; "
                f"found keys {', '.join(map(str, content)) or 'none'})"
            )
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise DatasetError(f"{name}: {key}[{index}] is not an object")
            for field_name, (is_valid, expected) in fields.items():
                if not is_valid(entry.get(field_name)):
                    got = reprlib.repr(entry[field_name]) if field_name in entry else "nothing"
                    raise DatasetError(
                        f"{name}: {key}[{index}] (id {entry.get('id')}) has {field_name} = {got}, "
                        f"expected {expected}"
                    )
    if not content["images"]:
        raise DatasetError(f"{name}: 'images' is empty, there is nothing to train or evaluate on")
    if not content["categories"]:
        raise DatasetError(f"{name}: 'categories' is empty, there are no classes")
    return content


def annotation_problems(content, image_dir):
    """The cheap checks: everything the annotation file says, and whether the image files exist.

    Args:
        content: dict from `read_annotations`.
        image_dir: folder that the file names in it are relative to; None skips the files.

    Returns:
        List of `Problem`, only those that occur, errors first.
    """
    found = _Problems()
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for kind, label in (("images", "image"), ("annotations", "annotation")):
        for number in _repeated(entry["id"] for entry in content[kind]):
            found.add(f"duplicate {label} id", f"{label} id {number}")
    for number in _repeated(category["id"] for category in content["categories"]):
        found.add("duplicate category id", f"category id {number}")
    for name in _repeated(category["name"] for category in content["categories"]):
        found.add("category name used twice", name)
    for name in _repeated(image["file_name"] for image in content["images"]):
        found.add("file listed twice", name)

    if image_dir is not None:
        for name in _missing_files(content["images"], image_dir):
            found.add("missing image", os.path.join(image_dir, name))
    for image in content["images"]:
        if image["width"] < 1 or image["height"] < 1:
            found.add(
                "bad image size", f"{image['file_name']}: {image['width']} x {image['height']}"
            )
    usable = 0
    for annotation in content["annotations"]:
        where = f"annotation {annotation['id']} (image {annotation['image_id']})"
        if annotation["category_id"] not in categories:
            found.add("unknown category", f"{where}: category {annotation['category_id']}")
        image = images.get(annotation["image_id"])
        if image is None:
            found.add("unknown image", where)
            continue
        x, y, width, height = annotation["bbox"]
        box = f"{where}: bbox [{x:g}, {y:g}, {width:g}, {height:g}]"
        area = annotation.get("area")
        if width < 1 or height < 1 or (area is not None and area <= 0):
            found.add("degenerate box", box)
            continue
        right, bottom = image["width"], image["height"]
        if x >= right or y >= bottom or x + width <= 0 or y + height <= 0:
            found.add("box outside image", f"{box} in {right} x {bottom}")
            continue
        usable += 1
        if (
            min(x, y) < -OUTSIDE_TOLERANCE
            or x + width > right + OUTSIDE_TOLERANCE
            or y + height > bottom + OUTSIDE_TOLERANCE
        ):
            found.add("box partly outside image", f"{box} in {right} x {bottom}")
    if content["annotations"] and not usable:
        found.add("no usable box", f"0 of {len(content['annotations'])}")
    _guess_format(content["annotations"], images, found)
    return found.list()


def segmentation_problems(content):
    """What is wrong with the masks of annotations; nothing where no object has one.

    Args:
        content: dict from `read_annotations`.

    Returns:
        List of `Problem`, only those that occur, in the order of the other checks.

    Example:
        >>> content = read_annotations("demo_data/annotations/instances_val.json")
        >>> content["annotations"][0]["segmentation"] = [[10, 10, 20, 20]]
        >>> found = {problem.kind: problem.count for problem in segmentation_problems(content)}
        >>> found["polygon of fewer than three points"]
        1
    """
    if not any(annotation.get("segmentation") for annotation in content["annotations"]):
        return []
    found = _Problems()
    images = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            continue  # a problem of its own
        x, y, width, height = annotation["bbox"]
        sides = image["height"], image["width"]
        fault = mask_fault(annotation.get("segmentation"), (x, y, x + width, y + height), *sides)
        if fault:
            found.add(fault, f"annotation {annotation['id']} (image {annotation['image_id']})")
    return found.list()


def raise_on_errors(problems, name):
    """Raises a `DatasetError` that lists the errors among `problems`; logs the warnings."""
    errors = []
    for problem in problems:
        line = (
            f"{problem.count} x {problem.kind} ({problem.consequence}), for example "
            f"{'; '.join(problem.examples)}"
        )
        if problem.severity == ERROR:
            errors.append(line)
        else:
            logger.warning("%s: %s", name, line)
    if errors:
        raise DatasetError("\n  ".join([f"{name} cannot be used:", *errors]))


def size_difference(annotated: tuple, actual: tuple) -> str:
    """What to say about an image whose (width, height) is not the annotated one; "" if it is."""
    if tuple(annotated) == tuple(actual):
        return ""
    rotated = " (is the EXIF rotation ignored in the annotations?)"
    return "annotated {} x {}, is {} x {}".format(*annotated, *actual) + (
        rotated if tuple(annotated) == tuple(actual)[::-1] else ""
    )


def check_dataset(
    annotations_json: str | Path, image_dir: str | Path, decode: bool = True
) -> DatasetReport:
    """Checks a data set in COCO format, with `decode` including every pixel of it.

    Args:
        annotations_json: path of the annotation file.
        image_dir: folder that the file names in it are relative to.
        decode: also decode every image, to find corrupt ones and wrong sizes.

    Returns:
        A `DatasetReport`. A file that cannot be read at all is one error in it.

    Example:
        >>> report = check_dataset("demo_data/annotations/instances_val.json", "demo_data/val")
        >>> bool(report.errors)
        False
    """
    try:
        content = read_annotations(annotations_json)
    except DatasetError as error:
        return unusable_report(annotations_json, error, decode)
    return check_content(content, image_dir, annotations_json, decode)


def unusable_report(name, error, decode):
    """The `DatasetReport` of annotations that cannot be read at all."""
    found = _Problems()
    found.add("unusable annotation file", error)
    return DatasetReport(str(name), 0, 0, 0, 0, decode, found.list())


def check_content(content, image_dir, name, decode=True):
    """`check_dataset` for annotations already in memory; `name` stands for the file."""
    problems = _merge(annotation_problems(content, image_dir), segmentation_problems(content))
    if decode:
        problems = _merge(problems, _image_problems(content["images"], image_dir))
    with_boxes = {annotation["image_id"] for annotation in content["annotations"]}
    return DatasetReport(
        annotations_json=str(name),
        num_images=len(content["images"]),
        num_annotations=len(content["annotations"]),
        num_categories=len(content["categories"]),
        images_without_boxes=sum(image["id"] not in with_boxes for image in content["images"]),
        decoded=decode,
        problems=problems,
    )


# Details ----------------------------------------------------------------------------------------


def _is_whole(value, lowest, end):
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value < end


def _is_id(value):
    return _is_whole(value, 0, 2**63)  # below 0 is what fills up a batch


def _is_size(value):
    return _is_whole(value, -(2**31), 2**31)  # what is below 1 is counted, see "bad image size"


def _is_number(value):
    if isinstance(value, int):
        return _is_whole(value, -(2**63), 2**63)  # larger ones may be no float64
    return isinstance(value, float) and math.isfinite(value)


def _is_bbox(value):
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_text(value):
    if not isinstance(value, str) or value == "":
        return False
    return "\0" not in value and not re.search("[\ud800-\udfff]", value)  # neither can be a name


_FIELDS = {
    "images": {
        "id": (_is_id, "a whole number from 0 to 2^63 - 1"),
        "file_name": (_is_text, "a file name"),
        "width": (_is_size, "a whole number of pixels"),
        "height": (_is_size, "a whole number of pixels"),
    },
    "annotations": {
        "id": (_is_id, "a whole number from 0 to 2^63 - 1"),
        "image_id": (_is_id, "a whole number from 0 to 2^63 - 1"),
        "category_id": (_is_id, "a whole number from 0 to 2^63 - 1"),
        "bbox": (_is_bbox, "four finite numbers x, y, width, height"),
        "area": (lambda value: value is None or _is_number(value), "a finite number"),
        "iscrowd": (lambda value: value in (None, 0, 1), "0 or 1"),
    },
    "categories": {
        "id": (_is_id, "a whole number from 0 to 2^63 - 1"),
        "name": (_is_text, "a name"),
    },
}

_KINDS = {
    "unusable annotation file": (ERROR, "nothing can be read"),
    "missing image": (ERROR, "training will not start"),
    "corrupt image": (ERROR, "skipped in training, counted"),
    "size differs from the file's": (ERROR, "boxes may be at the wrong place"),
    "duplicate image id": (ERROR, "boxes go to the wrong image"),
    "duplicate annotation id": (ERROR, "evaluation would be wrong"),
    "duplicate category id": (ERROR, "classes are ambiguous"),
    "unknown category": (ERROR, "annotation has no class"),
    "unknown image": (ERROR, "annotation has no image"),
    "bad image size": (ERROR, "boxes cannot be placed"),
    "no usable box": (ERROR, "all are degenerate or outside their image: nothing to learn"),
    "boxes within 0..1": (ERROR, "COCO's are in pixels: are these relative to 1?"),
    "boxes like x1, y1, x2, y2": (WARNING, "COCO's are x, y, width, height: is this xyxy?"),
    "dark 16-bit image": (WARNING, "read as 0..65535, almost black: is this 12-bit data?"),
    "box outside image": (WARNING, "left out of training"),
    "box partly outside image": (WARNING, "clipped in training"),
    "degenerate box": (WARNING, "left out of training (width, height < 1 or area 0)"),
    **dict.fromkeys(FAULTS, (WARNING, "its box is trained, its mask is not")),
    "category name used twice": (WARNING, "one line for both in the table per class"),
    "file listed twice": (WARNING, "counts twice"),
}


class _Problems:
    """Collects problems by kind."""

    def __init__(self):
        self._found = {}

    def add(self, kind, example):
        if kind not in self._found:
            self._found[kind] = Problem(_KINDS[kind][0], kind, _KINDS[kind][1])
        self._found[kind].add(example)

    def list(self):
        return _merge(self._found.values(), [])


def _merge(first, second):
    order = list(_KINDS)
    return sorted([*first, *second], key=lambda problem: order.index(problem.kind))


def _repeated(values):
    return [value for value, count in Counter(values).items() if count > 1]


def _guess_format(annotations, images, found):
    """Adds a problem when the boxes as a whole look like those of another format."""
    placed = [(a["bbox"], images[a["image_id"]]) for a in annotations if a["image_id"] in images]
    if not placed:
        return
    if all(0 <= value <= 1 for box, _ in placed for value in box):
        found.add("boxes within 0..1", f"all {len(placed)}, as {placed[0][0]}")
        return
    # Real corners end inside the image and right of and below their beginning, all of them; taken
    # for sides they stick out wherever the object's centre is in the right or the lower half.
    if len(placed) < FEWEST_TO_JUDGE or not all(
        x1 < x2 <= image["width"] + OUTSIDE_TOLERANCE
        and y1 < y2 <= image["height"] + OUTSIDE_TOLERANCE
        for (x1, y1, x2, y2), image in placed
    ):
        return
    outside = sum(
        x + width > image["width"] + OUTSIDE_TOLERANCE
        or y + height > image["height"] + OUTSIDE_TOLERANCE
        for (x, y, width, height), image in placed
    )
    if outside >= len(placed) / 4:
        found.add(
            "boxes like x1, y1, x2, y2",
            f"{outside} of {len(placed)} stick out of their image, as {placed[0][0]}",
        )


def _missing_files(images, image_dir):
    # One listing instead of one look-up per image: 118 000 look-ups on a network disk take minutes.
    try:
        present = {entry.name for entry in os.scandir(image_dir) if entry.is_file()}
    except OSError as error:
        raise DatasetError(f"image folder {image_dir}: {error.strerror or error}") from error
    return [
        image["file_name"]
        for image in images
        if image["file_name"] not in present
        and not os.path.isfile(os.path.join(image_dir, image["file_name"]))
    ]


def _image_problems(images, image_dir):
    def examine(image):
        path = os.path.join(image_dir, image["file_name"])
        if not os.path.isfile(path):
            return []  # already reported as missing
        try:
            height, width = read_image(path).shape[:2]
        except UnreadableImageError as error:
            return [("corrupt image", error)]
        results = []
        wrong = size_difference((image["width"], image["height"]), (width, height))
        if wrong:
            results.append(("size differs from the file's", f"{image['file_name']}: {wrong}"))
        peak = deep_peak(path)
        if peak is not None and 2**8 <= peak < 2**12:
            results.append(("dark 16-bit image", f"{image['file_name']}: largest value {peak}"))
        return results

    found = _Problems()
    with ThreadPoolExecutor() as pool:
        for results in track(pool.map(examine, images), len(images), "decoding images"):
            for kind, example in results:
                found.add(kind, example)
    return found.list()
