import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sepc_tf import predict
from sepc_tf.visualization import class_colour

pytestmark = pytest.mark.same_on_both_stacks

BOXES = np.float32([[40, 40, 280, 200], [42, 40, 280, 202], [300, 220, 380, 290]])
FOUND = predict.Detections(
    boxes=BOXES,
    scores=np.float32([0.9, 0.8, 0.7]),
    classes=np.int32([0, 1, 2]),
    names=["cat", "dog", "cow"],
)


@pytest.fixture
def run(monkeypatch):
    """A run whose predictor finds one object twice, as a cat and as a dog, and a cow."""
    monkeypatch.setattr(predict, "Predictor", lambda run: lambda image: FOUND)
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(FOUND.names)]
    return SimpleNamespace(categories=categories)


@pytest.mark.parametrize(("one_per_object", "drawn"), [(False, [0, 1, 2]), (True, [0, 2])])
def test_pictures_may_have_one_box_per_object_and_the_json_has_all(
    run, tmp_path, monkeypatch, one_per_object, drawn
):
    Image.new("RGB", (400, 320)).save(tmp_path / "photo.png")
    pictures = []
    draw = predict.draw_detections
    monkeypatch.setattr(
        predict, "draw_detections", lambda *a, **k: pictures.append(draw(*a, **k)) or pictures[-1]
    )
    found, failed = predict.predict_files(
        run, [tmp_path / "photo.png"], tmp_path / "out", draw_one_per_object=one_per_object
    )
    assert list(found.values()) == [FOUND] and not failed
    for label in range(3):
        has_colour = (pictures[0] == np.array(class_colour(label))).all(-1).any()
        assert has_colour == (label in drawn)
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [d["name"] for d in content["images"][0]["detections"]] == FOUND.names


@pytest.mark.parametrize("last_pixel", [0, 1])
def test_masks_are_those_of_the_image_in_the_result_the_picture_and_the_json(
    tmp_path, monkeypatch, last_pixel
):
    """The left half of the cat's box, whatever the convention."""
    half = np.tile(np.float32([[1.0] * 14 + [0.0] * 14]), [28, 1])
    outputs = {
        "boxes": tf.constant(BOXES[None, :1]),  # x2 - x1 is the width in every convention
        "scores": tf.constant([[0.9]]),
        "classes": tf.constant([[0]]),
        "num_detections": tf.constant([1]),
        "masks": tf.constant(half[None, None]),
    }
    monkeypatch.setattr(predict, "detect_images", lambda detector, data, images: outputs)
    run = SimpleNamespace(
        categories=[{"id": 1, "name": "cat"}],
        detector=SimpleNamespace(convention=("modern", "mmdet1")[last_pixel]),
        config=SimpleNamespace(data=None),
    )
    Image.new("RGB", (400, 320)).save(tmp_path / "photo.png")
    found, _ = predict.predict_files(run, [tmp_path / "photo.png"], tmp_path / "out")
    expected = np.zeros((320, 400), np.uint8)
    expected[40:200, 40:160] = 1
    (detections,) = found.values()
    np.testing.assert_array_equal(detections.masks(), [expected])
    picture = np.asarray(Image.open(tmp_path / "out/photo.jpg")).astype(int)
    assert picture[60:180, 60:140].max(-1).min() > 60 and picture[60:180, 180:260].max() < 60
    (image,) = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert image["detections"][0]["segmentation"] == detections.segmentations[0]
