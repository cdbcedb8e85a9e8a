"""Every format against the detector itself, each run by its own runtime."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from small_run import SIZE, image, need, small_config, small_run

from sepc_tf.detectors import FasterRCNN
from sepc_tf.errors import MissingPackageError, ModelError, UserError
from sepc_tf.export import SUFFIXES, export
from sepc_tf.exported import ExportedModel
from sepc_tf.predict import Predictor

pytestmark = pytest.mark.same_on_both_stacks

DETECTORS = [
    ("retinanet", "baseline", "modern"),
    ("retinanet", "sepc", "modern"),
    ("free_anchor", "sepc_lite", "modern"),
    ("fsaf", "pconv_ibn", "modern"),
    ("fcos", "baseline", "mmdet1"),
    ("reppoints", "sepc_lite", "modern"),
]


@pytest.fixture(scope="module", params=DETECTORS, ids="-".join)
def run(request):
    return small_run(*request.param)


@pytest.fixture(scope="module")
def expected(run):
    return [as_rows(Predictor(run)(image(seed, size))) for seed, size in ((0, (50, 75)), (1, SIZE))]


def as_rows(found):
    """Detections as rows of boxes relative to the image, scores, and classes."""
    return np.c_[found.boxes / SIZE[1], found.scores, found.classes]


@pytest.mark.parametrize("format", SUFFIXES)
def test_detections_are_those_of_the_detector(run, expected, format, tmp_path):
    need(format)
    path = export(run, tmp_path / "model", format, image_size=SIZE)
    predictor = Predictor(ExportedModel(path))
    for seed, size in enumerate(((50, 75), SIZE)):
        found = as_rows(predictor(image(seed, size)))
        assert np.ptp(expected[seed][:, 4]) > 1e-2, "scores are spread"
        np.testing.assert_allclose(found[:, 4], expected[seed][:, 4], rtol=0, atol=1e-4)
        # Scores that differ by less may come in another order: each row has one that equals it.
        distance = np.abs(found[:, None] - expected[seed]).max(-1)
        assert len(found) == len(expected[seed])
        assert max(distance.min(0).max(), distance.min(1).max()) <= 1e-4


def test_bfloat16_runs_where_the_processor_has_it(retinanet, tmp_path):
    need("openvino")
    import openvino

    path = export(retinanet, tmp_path / "model", "openvino", "bfloat16", SIZE)
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found = Predictor(ExportedModel(path))(image(0, SIZE))
        expected = Predictor(retinanet)(image(0, SIZE))
        # Eight bits of mantissa, through some twenty layers.
        np.testing.assert_allclose(found.scores[:5], expected.scores[:5], rtol=0.05)
    else:
        with pytest.raises(ModelError, match=r"bfloat16, which OpenVINO cannot .* on this proces"):
            ExportedModel(path)


@pytest.fixture(scope="module")
def retinanet():
    return small_run("retinanet", "sepc_lite")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coreml"}, r"format: expected one of .*'onnx'.*, got 'coreml'"),
        ({"format": "saved_model", "precision": "int8"}, "a SavedModel is float32"),
        ({"format": "litert", "precision": "bfloat16"}, "litert has float32, float16, int8; got"),
        ({"format": "onnx", "image_size": (60, 96)}, r"multiples of 32 .*, got 60x96"),
        ({"format": "onnx"}, "size of the validation images is not known .* give --image-size"),
    ],
)
def test_arguments_that_do_not_fit_are_named(retinanet, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        export(retinanet, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_a_two_stage_detector_says_what_it_can_be(tmp_path):
    run = SimpleNamespace(config=small_config(), detector=object.__new__(FasterRCNN))
    with pytest.raises(UserError, match="FasterRCNN can only be exported with --format saved_mod"):
        export(run, tmp_path / "model", "onnx", image_size=SIZE)


def test_a_missing_package_names_the_extra(retinanet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"pip install sepc-tf\[onnx\]"):
        export(retinanet, tmp_path / "model", "onnx", image_size=SIZE)
    assert not list(tmp_path.rglob("*.json")), "nothing is left that looks like a model"
