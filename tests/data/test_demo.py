import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sepc_tf.data import demo
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.data.segmentations import decode_mask

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture(scope="module")
def demo_root(tmp_path_factory):
    return make_demo_dataset(tmp_path_factory.mktemp("demo") / "set", 150, 30, seed=3)


def read(root, split):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def digest(root):
    result = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            result.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return result.hexdigest()


def test_layout_and_contents(demo_root):
    for split, count in (("train", 150), ("val", 30)):
        content = read(demo_root, split)
        assert len(content["images"]) == count
        per_image = np.zeros(count + 1, int)
        for annotation in content["annotations"]:
            per_image[annotation["image_id"]] += 1
            x, y, width, height = annotation["bbox"]
            assert x >= 0 and y >= 0 and width > 0 and height > 0
            assert x + width <= 256 and y + height <= 256
            assert annotation["area"] == width * height
        assert per_image.max() <= 5
        assert 0 < (per_image[1:] == 0).mean() < 0.2, "some images, and few, are without objects"
        assert {a["category_id"] for a in content["annotations"]} <= set(range(1, 11))
        for image in content["images"][:5]:
            with Image.open(demo_root / split / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (256, 256)


def test_masks_are_the_ink(demo_root):
    """In the box, tight where nothing covers the digit, of one colour that is not the ground's."""
    content = read(demo_root, "val")
    objects = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        mask = decode_mask(annotation["segmentation"], 256, 256).astype(bool)
        objects[annotation["image_id"]].append((annotation["bbox"], mask))
    compared = 0
    for image in content["images"]:
        pixels = np.asarray(Image.open(demo_root / "val" / image["file_name"])).astype(float)
        masks = [mask for _, mask in objects[image["id"]]]
        assert not masks or np.sum(masks, axis=0).max() <= 1, "what is covered is not seen"
        for (x, y, width, height), mask in objects[image["id"]]:
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            box = [x, y, x + width, y + height]
            assert (np.maximum(found, box)[2:] == box[2:]).all()
            assert (np.minimum(found, box)[:2] == box[:2]).all()
            if len(masks) > 1 or width * height < 40**2:
                continue
            assert found == box
            ink = np.median(pixels[mask], axis=0)
            near = np.abs(pixels - ink).max(-1) < 40
            window = np.s_[y : y + height, x : x + width]
            assert (near == mask)[window].mean() > 0.9, "the rest is the blurred edge"
            compared += 1
    assert compared > 2


def test_sizes_span_more_than_8x_log_uniformly(demo_root):
    sizes = np.sqrt([a["area"] for a in read(demo_root, "train")["annotations"]])
    assert sizes.min() < 18 and sizes.max() > 200
    quartiles = np.exp(np.linspace(np.log(demo.SMALLEST), np.log(demo.LARGEST), 5)[1:-1])
    np.testing.assert_allclose(np.quantile(sizes, [0.25, 0.5, 0.75]), quartiles, rtol=0.25)


def retinanet_positives(boxes, size=256, centre=0.5):
    """Positive anchors `[boxes, levels P3..P7]` by RetinaNet's rule (IoU >= 0.5, or the best)."""
    level_of, anchors = [], []
    for level in range(3, 8):
        stride = 2**level
        positions = (np.arange(-(-size // stride)) + centre) * stride
        for y in positions:
            for x in positions:
                for scale in 4.0 * 2 ** (np.arange(3) / 3):
                    for ratio in (0.5, 1.0, 2.0):
                        width, height = stride * scale / ratio**0.5, stride * scale * ratio**0.5
                        anchors.append(
                            (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                        )
                        level_of.append(level - 3)
    anchors, level_of = np.array(anchors), np.array(level_of)
    overlap = np.minimum(boxes[:, None, 2:], anchors[None, :, 2:]) - np.maximum(
        boxes[:, None, :2], anchors[None, :, :2]
    )
    intersection = np.clip(overlap, 0, None).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes, anchors)]
    iou = intersection / (areas[0][:, None] + areas[1][None] - intersection)
    positive = (iou >= 0.5) | (iou == iou.max(1, keepdims=True))
    return np.stack([(positive & (level_of == level)).sum(1) for level in range(5)], 1)


def test_smallest_objects_are_matched_on_p3_and_largest_on_p6(demo_root):
    boxes = np.array([a["bbox"] for a in read(demo_root, "train")["annotations"]], float)
    boxes[:, 2:] += boxes[:, :2]
    sizes = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(-1))
    positives = retinanet_positives(boxes)
    small, large = sizes < 28, sizes > 205
    assert small.sum() >= 20 and large.sum() >= 5
    assert (positives[small][:, 1:] == 0).all() and (positives[small][:, 0] > 0).all()
    assert (positives[large][:, 3] > 0).all(), "every largest object trains anchors of P6"
    # Every level from P3 to P6 is the one that most of some objects' anchors are on.
    assert set(positives.argmax(1)) >= {0, 1, 2}
    assert (positives[:, :4].astype(bool).mean(0) > 0.08).all()


def test_boxes_are_tight_around_the_ink_and_the_ink_contrasts():
    rng = np.random.default_rng(0)
    from sklearn.datasets import load_digits

    scans = load_digits().images
    for width, height in ((10, 16), (60, 90), (200, 240)):
        item = demo._Object(7, width, height, 4, 6)
        empty, *_ = demo._draw(np.random.default_rng(5), [], scans)
        drawn, [box], _ = demo._draw(np.random.default_rng(5), [item], scans)
        x, y, box_width, box_height = box
        # Same texture; the final noise differs, hence the threshold.
        changed = np.abs(drawn.astype(int) - empty).max(-1) > 45
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert abs(rows[0] - y) <= 2 and abs(rows[-1] + 1 - y - box_height) <= 2
        assert abs(columns[0] - x) <= 2 and abs(columns[-1] + 1 - x - box_width) <= 2
    for luminance in (0.0, 60.0, 127.0, 128.0, 255.0):
        colour = demo._ink_colour(rng, luminance)
        assert abs(float(colour @ demo._LUMINANCE) - luminance) >= 95


def test_overlap_is_limited(demo_root):
    by_image = {}
    for annotation in read(demo_root, "train")["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    for boxes in by_image.values():
        for first in range(len(boxes)):
            for second in range(first):
                (x, y, w, h), (u, v, p, q) = boxes[first], boxes[second]
                shared = max(min(x + w, u + p) - max(x, u), 0) * max(
                    min(y + h, v + q) - max(y, v), 0
                )
                assert shared / (w * h + p * q - shared) < 0.1


def test_train_and_val_use_disjoint_scans(tmp_path, monkeypatch):
    seen = []
    original = demo._random_object

    def record(rng, scans):
        seen.append(scans)
        return original(rng, scans)

    monkeypatch.setattr(demo, "_random_object", record)
    make_demo_dataset(tmp_path / "set", 3, 3)
    first, last = seen[0], seen[-1]
    assert len(first) + len(last) == 1797 and not np.shares_memory(first, last)


def test_same_seed_same_bytes_other_seed_others(tmp_path):
    first = make_demo_dataset(tmp_path / "a", 6, 3, seed=1)
    assert digest(first) == digest(make_demo_dataset(tmp_path / "b", 6, 3, seed=1))
    other = make_demo_dataset(tmp_path / "c" / "d", 6, 3, seed=2)
    assert read(other, "train")["annotations"] != read(first, "train")["annotations"]


def test_existing_set_is_reused_damaged_one_remade_foreign_one_refused(tmp_path):
    root = make_demo_dataset(tmp_path / "set", 4, 2)
    before = digest(root)
    stamp = os.stat(root / "train" / "000001.jpg").st_mtime_ns
    make_demo_dataset(root, 4, 2)
    assert os.stat(root / "train" / "000001.jpg").st_mtime_ns == stamp
    (root / "train" / "000002.jpg").unlink()
    assert digest(make_demo_dataset(root, 4, 2)) == before
    with pytest.raises(FileExistsError, match="made with"):
        make_demo_dataset(root, 5, 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="not a demo data set"):
        make_demo_dataset(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(ValueError, match="val_images"):
        make_demo_dataset(tmp_path / "none", 1, -1)
    assert not (tmp_path / "none").exists()


def test_interrupted_generation_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_draw", fail)
    with pytest.raises(KeyboardInterrupt):
        make_demo_dataset(tmp_path / "set", 4, 2)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    # What a killed process left (its id is free again) goes away with the next call.
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / f".set.incomplete-{process.pid}-abc").mkdir()
    make_demo_dataset(tmp_path / "set", 4, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
