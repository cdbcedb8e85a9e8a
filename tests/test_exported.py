"""What is done around a model of one input size, and what is no model."""

import dataclasses
import json

import numpy as np
import pytest

from sepc_tf.errors import ModelError
from sepc_tf.exported import (
    RUNTIMES,
    Description,
    ExportedModel,
    around,
    described,
    model_file,
    read_description,
)

pytestmark = pytest.mark.same_on_both_stacks

DESCRIPTION = Description(
    format="onnx",
    precision="float32",
    image_size=[64, 96],
    categories=[{"id": 7, "name": "a"}, {"id": 9, "name": "b"}],
    resizing={
        "test_short_side": 48,
        "long_side": 96,
        "mean": [10.0] * 3,
        "std": [2.0] * 3,
        "channel_order": "rgb",
    },
    suppression={
        "score_threshold": 0.3,
        "iou_threshold": 0.5,
        "max_detections": 5,
        "convention": "modern",
        "kind": "hard",
        "soft_sigma": 0.5,
    },
)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((24, 36), (48, 72)),  # the short side becomes 48
        ((24, 72), (32, 96)),  # the long side becomes 96
        ((80, 40), (64, 32)),  # 96 x 48 does not fit: as high as the input
    ],
)
def test_an_image_is_resized_padded_and_its_boxes_come_back(size, resized):
    calls = []

    def candidates(images, image_sizes):
        calls.append((images, image_sizes))
        height, width = resized
        boxes = np.float32([[0, 0, width, height], [0, 0, width, 0.9 * height], [0, 0, 2, 2]])
        return boxes[None], np.float32([[[0.2, 0.9], [0.1, 0.8], [0.25, 0.2]]])

    detections = around(DESCRIPTION, candidates)(np.full((1, *size, 3), 14, np.uint8))
    ((images, image_sizes),) = calls
    assert images.shape == (1, 64, 96, 3) and images.dtype == np.float32
    np.testing.assert_array_equal(image_sizes, [resized])
    np.testing.assert_array_equal(images[:, : resized[0], : resized[1]], 2.0)
    assert np.count_nonzero(images) == 3 * np.prod(resized), "padded with zeros"
    assert detections["num_detections"] == [1]
    np.testing.assert_allclose(detections["boxes"][0, 0], [0, 0, size[1], size[0]], rtol=1e-6)
    np.testing.assert_allclose(detections["scores"][0], [0.9, 0, 0, 0, 0])
    np.testing.assert_array_equal(detections["classes"][0], [1, -1, -1, -1, -1])


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="is no exported model: expected a SavedModel's folder"):
        ExportedModel(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"a\.onnx is no exported model: .*FILE\.json beside it"):
        ExportedModel(tmp_path / "a.onnx")
    (tmp_path / "a.onnx.json").write_text("[]")
    with pytest.raises(ModelError, match=r"a\.onnx\.json is no description of a model"):
        ExportedModel(tmp_path)
    (tmp_path / "a.onnx.json").write_text("{")
    with pytest.raises(ModelError, match=r"a\.onnx\.json cannot be read"):
        ExportedModel(tmp_path)
    describe(tmp_path / "a.onnx", dataclasses.replace(DESCRIPTION, format="coreml"))
    with pytest.raises(
        ModelError, match="format: expected one of litert, onnx, openvino, got 'coreml'"
    ):
        ExportedModel(tmp_path)


def describe(file, description, **more):
    content = {**described(file, description), **more}
    file.with_name(f"{file.name}.json").write_text(json.dumps(content))


def test_a_model_and_its_description_belong_together(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setitem(RUNTIMES, "onnx", lambda file, precision: loaded.append(file.read_text()))
    file, text = tmp_path / "a.onnx", tmp_path / "a.onnx.json"
    file.write_text("weights")
    describe(file, DESCRIPTION)
    assert ExportedModel(file).categories == DESCRIPTION.categories and loaded == ["weights"]
    whole = text.read_text()
    file.write_text("weighty")
    with pytest.raises(ModelError, match=r"a\.onnx and .*a\.onnx\.json do not belong together"):
        ExportedModel(file)
    file.write_text("weights")
    text.write_text(whole.replace("0.3", "0.8"))  # the threshold of scores
    with pytest.raises(ModelError, match="do not belong together"):
        ExportedModel(file)
    assert loaded == ["weights"]


def test_while_a_model_is_replaced_each_of_both_has_its_description(tmp_path):
    file = tmp_path / "a.onnx"
    file.write_text("old")
    before = described(file, DESCRIPTION)
    file.write_text("new")
    now = dataclasses.replace(DESCRIPTION, image_size=[32, 32])
    describe(file, now, before=before)
    assert read_description(file) == now
    file.write_text("old")
    assert read_description(file) == DESCRIPTION
    file.write_text("another")
    with pytest.raises(ModelError, match="do not belong together"):
        read_description(file)


def test_what_a_runtime_raises_is_one_message(tmp_path, monkeypatch):
    def fail(file, precision):
        raise RuntimeError("no such operation\nat line 7")

    monkeypatch.setitem(RUNTIMES, "onnx", fail)
    (tmp_path / "a.onnx").write_text("x")
    describe(tmp_path / "a.onnx", DESCRIPTION)
    with pytest.raises(ModelError, match=r"a\.onnx cannot be loaded \(no such operation\); export"):
        ExportedModel(tmp_path / "a.onnx")


def test_a_folder_of_one_model_stands_for_it(tmp_path):
    (tmp_path / "model.xml").write_text("x")
    (tmp_path / "model.bin").write_text("x")
    (tmp_path / "model.xml.json").write_text("{}")
    assert model_file(tmp_path) == tmp_path / "model.xml"
    (tmp_path / "other.onnx").write_text("x")
    (tmp_path / "other.onnx.json").write_text("{}")
    with pytest.raises(ModelError):
        model_file(tmp_path)
