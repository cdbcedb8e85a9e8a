import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sepc_tf.data.check import DatasetError, check_dataset, read_annotations
from sepc_tf.data.segmentations import (
    BROKEN,
    FEW_POINTS,
    MISSING,
    ODD_POLYGON,
    OTHER_SIZE,
    OUTSIDE_BOX,
)

pytestmark = pytest.mark.same_on_both_stacks

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_dataset.py"


@pytest.fixture
def folder(tmp_path):
    """A valid data set of three images; `content` is changed by the tests, then written."""
    (tmp_path / "images").mkdir()
    for name in "abc":
        pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.jpg")
    content = {
        "images": [
            {"id": i, "file_name": f"{n}.jpg", "width": 60, "height": 40}
            for i, n in enumerate("abc")
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 5, "bbox": [1, 2, 20, 20], "area": 400}
        ],
        "categories": [{"id": 5, "name": "cat"}],
    }
    return tmp_path, content


def report_of(folder, decode=True):
    root, content = folder
    (root / "a.json").write_text(json.dumps(content))
    return check_dataset(root / "a.json", root / "images", decode=decode)


def kinds(problems):
    return {problem.kind: problem.count for problem in problems}


def test_valid_data_set_has_no_problems(folder):
    report = report_of(folder)
    assert not report.problems
    assert (report.num_images, report.num_annotations, report.images_without_boxes) == (3, 1, 2)


def test_every_kind_of_error_is_found_and_counted(folder):
    root, content = folder
    annotation = content["annotations"][0]
    content["images"] += [
        {"id": 2, "file_name": "c.jpg", "width": 60, "height": 40},  # id and file again
        {"id": 7, "file_name": "gone.jpg", "width": 60, "height": 40},
        {"id": 8, "file_name": "turned.jpg", "width": 60, "height": 40},
        {"id": 9, "file_name": "cut.jpg", "width": 60, "height": 40},
        {"id": 10, "file_name": "sub/d.jpg", "width": 0, "height": 40},
    ]
    Image.new("RGB", (40, 60)).save(root / "images" / "turned.jpg")
    (root / "images" / "cut.jpg").write_bytes((root / "images" / "a.jpg").read_bytes()[:400])
    (root / "images" / "sub").mkdir()
    Image.new("RGB", (60, 40)).save(root / "images" / "sub" / "d.jpg")
    content["annotations"] += [
        {**annotation},  # id again
        {**annotation, "id": 2, "category_id": 6},
        {**annotation, "id": 3, "image_id": 99},
        {**annotation, "id": 4, "bbox": [70, 2, 10, 10]},
        {**annotation, "id": 5, "bbox": [50, 2, 20, 10]},
        {**annotation, "id": 6, "bbox": [50, 2, 0.5, 10]},
        {**annotation, "id": 7, "area": 0},
        {**annotation, "id": 8, "bbox": [50, 2, 10.9, 10]},  # within the tolerance
    ]
    content["categories"] += [{"id": 5, "name": "cat"}]
    report = report_of(folder)
    assert kinds(report.errors) == {
        "missing image": 1,
        "corrupt image": 1,
        "size differs from the file's": 2,
        "duplicate image id": 1,
        "duplicate annotation id": 1,
        "duplicate category id": 1,
        "unknown category": 1,
        "unknown image": 1,
        "bad image size": 1,
    }
    assert kinds(report.warnings) == {
        "box outside image": 1,
        "box partly outside image": 1,
        "degenerate box": 2,
        "file listed twice": 1,
        "category name used twice": 1,
    }
    sizes = next(p for p in report.errors if p.kind == "size differs from the file's")
    assert "turned.jpg: annotated 60 x 40, is 40 x 60 (is the EXIF" in sizes.examples[0]
    quick = report_of(folder, decode=False)
    assert "corrupt image" not in kinds(quick.errors) and "missing image" in kinds(quick.errors)


def boxes_of(folder, boxes, **fields):
    """The kinds of problem of a data set with these boxes in its first image."""
    _, content = folder
    content["annotations"] = [
        {"id": i + 1, "image_id": 0, "category_id": 5, "bbox": box, **fields}
        for i, box in enumerate(boxes)
    ]
    report = report_of(folder, decode=False)
    return kinds(report.errors), kinds(report.warnings)


def test_area_may_be_null(folder):
    assert boxes_of(folder, [[1, 2, 20, 20]], area=None) == ({}, {})


def test_no_usable_box_is_an_error(folder):
    good, narrow, outside = [1, 2, 20, 20], [1, 2, 0.5, 20], [60, 2, 20, 20]
    assert boxes_of(folder, [good, narrow]) == ({}, {"degenerate box": 1})
    assert boxes_of(folder, [narrow, outside]) == (
        {"no usable box": 1},
        {"degenerate box": 1, "box outside image": 1},
    )
    assert boxes_of(folder, []) == ({}, {}), "images without boxes are legal"


def test_boxes_of_another_format_are_recognised(folder):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, (40, 25), (20, 2))
    sides = rng.uniform(2, (20, 15), (20, 2))
    xywh = np.concatenate([corner, sides], 1).tolist()
    xyxy = np.concatenate([corner, corner + sides], 1).tolist()
    assert boxes_of(folder, xywh) == ({}, {})
    errors, warnings = boxes_of(folder, xyxy)
    assert not errors and warnings["boxes like x1, y1, x2, y2"] == 1
    assert "boxes like x1, y1, x2, y2" not in boxes_of(folder, xyxy[:4])[1], "too few to judge"
    relative = (np.array(xywh) / [60, 40, 60, 40]).tolist()
    errors, warnings = boxes_of(folder, relative)
    assert errors == {"boxes within 0..1": 1, "no usable box": 1}
    text = {problem.consequence for problem in report_of(folder, decode=False).problems}
    assert "COCO's are in pixels: are these relative to 1?" in text
    assert boxes_of(folder, [*relative, [1, 2, 20, 20]])[0] == {}


def test_12_bits_in_16_are_recognised(folder):
    root, content = folder
    depths = {"a.png": 2**12 - 1, "b.png": 2**16 - 1, "c.png": 255}
    for image, (name, peak) in zip(content["images"], depths.items()):
        image["file_name"] = name
        values = np.linspace(0, peak, 40 * 60).round().astype(np.uint16).reshape(40, 60)
        Image.fromarray(values).save(root / "images" / name)
    [problem] = report_of(folder).problems
    assert problem.severity == "warning" and problem.kind == "dark 16-bit image"
    assert problem.examples == ["a.png: largest value 4095"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the file is empty"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON .nested too deep.$"),
        ("1" * 5000, "not JSON .*5000 digits.$"),
        ("[]", "got a list"),
        ("{}", "key 'images' is missing"),
        ('{"images": [], "annotations": {}, "categories": []}', "'annotations' is not a list"),
        ('{"images": [], "annotations": [], "categories": []}', "'images' is empty"),
    ],
)
def test_unusable_files_are_explained(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=rf"broken\.json: .*{message}"):
        read_annotations(path)
    report = check_dataset(path, tmp_path)
    assert kinds(report.errors) == {"unusable annotation file": 1}


@pytest.mark.parametrize(
    "key, changes, message",
    [
        ("images", {"width": "60"}, r"images\[0\] \(id 0\) has width = '60', expected a whole"),
        ("images", {"id": None}, r"images\[0\] .* has id = None"),
        ("annotations", {"bbox": [1, 2, 3]}, r"annotations\[0\] \(id 1\) has bbox = \[1, 2, 3\]"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, "four finite numbers"),
        (
            "annotations",
            {"bbox": [1, 2, 10**400, 3]},
            r"bbox = \[1, 2, 10+\.+0+, 3\], expected four",
        ),
        ("annotations", {"area": 10**400}, "expected a finite number"),
        (
            "annotations",
            {"id": 2**63},
            "id = 9223372036854775808, expected a whole number from 0 to",
        ),
        ("annotations", {"iscrowd": 2}, "iscrowd = 2, expected 0 or 1"),
        ("images", {"id": 2**63}, "expected a whole number from 0 to"),
        ("images", {"id": -1}, "id = -1, expected a whole number from 0 to"),  # fills up batches
        ("images", {"width": 2**64}, "expected a whole number of pixels"),
        ("images", {"file_name": "a\0.jpg"}, "expected a file name"),
        ("images", {"file_name": "\ud800.jpg"}, "expected a file name"),
        ("categories", {"id": 2**64}, "expected a whole number from 0 to"),
        ("categories", {"name": ""}, "name = '', expected a name"),
    ],
)
def test_malformed_entries_are_named(folder, key, changes, message):
    root, content = folder
    content[key][0].update(changes)
    (root / "a.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=message):
        read_annotations(root / "a.json")


def test_missing_key_is_named(folder):
    root, content = folder
    del content["annotations"][0]["category_id"]
    (root / "a.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="category_id = nothing"):
        read_annotations(root / "a.json")


def test_real_coco_has_no_errors(coco128_dir):
    report = check_dataset(
        coco128_dir / "annotations" / "instances_train2017.json",
        coco128_dir / "train2017",
        decode=False,
    )
    assert report.num_images == 128 and not report.errors


def test_script_prints_a_table_and_exits_1_on_errors(folder):
    root, content = folder

    def run(*arguments):
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env={"COLUMNS": "160"})

    report_of(folder)
    good = run(root / "a.json", root / "images")
    assert good.returncode == 0 and "none found" in good.stdout
    content["annotations"][0]["category_id"] = 6
    report_of(folder)
    bad = run("--quick", root / "a.json", root / "images")
    assert bad.returncode == 1 and "unknown category" in bad.stdout
    assert "annotation 1 (image 0): category 6" in bad.stdout
    missing = run(root / "a.json", root / "nowhere")
    assert missing.returncode == 2 and "nowhere: No such file" in missing.stderr


def test_broken_segmentations_are_counted_and_named(folder):
    _, content = folder
    content["annotations"][0]["segmentation"] = [[1, 2, 21, 2, 21, 22]]
    assert not report_of(folder, decode=False).problems
    for number, segmentation in enumerate(
        [
            [[1, 2, 21, 22]],
            [[1, 2, 21, 2, 21, 22], [1, 2]],
            [[1, 2, 21, 2, 21, 22, 1]],
            {"size": [60, 40], "counts": [2400]},
            {"size": [40, 60], "counts": [24]},
            [[31, 2, 51, 2, 51, 22]],
            [],
        ]
    ):
        entry = {**content["annotations"][0], "id": 10 + number, "segmentation": segmentation}
        content["annotations"].append(entry)
    report = report_of(folder, decode=False)
    expected = {FEW_POINTS: 2, ODD_POLYGON: 1, OTHER_SIZE: 1, BROKEN: 1, OUTSIDE_BOX: 1, MISSING: 1}
    assert not report.errors and kinds(report.problems) == expected
    examples = {problem.kind: problem.examples for problem in report.problems}
    assert examples[FEW_POINTS] == ["annotation 10 (image 0)", "annotation 11 (image 0)"]
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    assert not report_of(folder, decode=False).problems, "no masks at all are no problem"
