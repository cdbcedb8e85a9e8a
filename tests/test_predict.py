import json
from types import SimpleNamespace

import numpy as np
import pytest
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
