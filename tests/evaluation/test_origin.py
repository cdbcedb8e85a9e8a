import json

import pytest
from perturbed import random_dataset

from sepc_tf.data.config import DataConfig
from sepc_tf.detectors.config import DetectorConfig
from sepc_tf.evaluation.origin import detections_origin, up_to_date
from sepc_tf.files import write_json

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "best.npz").write_bytes(b"weights")
    return tmp_path / "best.npz"


def test_it_is_the_same_as_long_as_the_detections_would_be(weights, tmp_path):
    dataset = random_dataset(images=3)
    origin = detections_origin(DetectorConfig(), DataConfig(), weights, dataset)
    assert origin == json.loads(json.dumps(origin))
    moved = DataConfig(directory="elsewhere", short_side=[1], flip_probability=0.1)
    assert origin == detections_origin(DetectorConfig(), moved, weights, random_dataset(images=3))
    for other in (
        detections_origin(DetectorConfig(nms="soft"), DataConfig(), weights, dataset),
        detections_origin(DetectorConfig(), DataConfig(long_side=9), weights, dataset),
        detections_origin(DetectorConfig(), DataConfig(), weights, dataset.first(2)),
    ):
        assert other != origin
    weights.write_bytes(b"trained on")
    assert detections_origin(DetectorConfig(), DataConfig(), weights, dataset) != origin


def test_both_files_have_to_be_there(tmp_path):
    assert not up_to_date(tmp_path, {"a": 1})
    write_json(tmp_path / "origin.json", {"a": 1})
    assert not up_to_date(tmp_path, {"a": 1})
    write_json(tmp_path / "detections.json", [])
    assert up_to_date(tmp_path, {"a": 1}) and not up_to_date(tmp_path, {"a": 2})
