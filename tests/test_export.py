"""A SavedModel serves what `Predictor` returns, in a process that has only TensorFlow."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from sepc_tf.config import load_config
from sepc_tf.export import export
from sepc_tf.predict import Predictor, predict_files
from sepc_tf.runs import Run
from sepc_tf.zoo import build_detector

ROOT = Path(__file__).parents[1]
SERVE = """
import json, sys
import numpy as np
import tensorflow as tf

serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
images = np.load(sys.argv[2])
results = {}
for name in images.files:
    outputs = serve(images=tf.constant(images[name]))
    results |= {f"{name}/{key}": value.numpy() for key, value in outputs.items()}
np.savez(sys.argv[3], **results)
foreign = [name for name in ("sepc_tf", "keras_cv", "keras") if name in sys.modules]
assert "sepc_tf" not in foreign and "keras_cv" not in foreign, foreign
"""


@pytest.fixture(scope="module")
def run():
    """A detector with random weights that still finds things: every score counts."""
    keras.utils.set_random_seed(3)
    config = load_config(
        ROOT / "configs/demo_sepc.yaml",
        [
            "detector.backbone.width=8",
            "detector.head.filters=16",
            "detector.head.num_convs=1",
            "detector.score_threshold=0.0",
            "data.test_short_side=64",
            "data.long_side=96",
        ],
    )
    detector = build_detector(config.detector, num_classes=3)
    categories = [{"id": 10 * i, "name": name} for i, name in enumerate("abc")]
    return Run(config, detector, categories, Path("none"), 0)


def images(generator, *shape):
    return generator.integers(0, 256, shape, np.uint8)


def test_the_saved_model_equals_predict_in_a_bare_process(run, tmp_path):
    generator = np.random.default_rng(0)
    batches = {
        "one": images(generator, 1, 64, 96, 3),
        "two": images(generator, 2, 61, 83, 3),
        "tall": images(generator, 2, 131, 47, 3),
        "tiny": images(generator, 1, 9, 7, 3),
    }
    directory = export(run, tmp_path / "model")
    assert [c["name"] for c in json.loads((directory / "categories.json").read_text())] == [*"abc"]
    np.savez(tmp_path / "in.npz", **batches)
    subprocess.run(
        [sys.executable, "-c", SERVE, directory, tmp_path / "in.npz", tmp_path / "out.npz"],
        check=True,
        cwd=tmp_path,
    )
    served = np.load(tmp_path / "out.npz")
    predictor = Predictor(run)
    for name, batch in batches.items():
        for index, image in enumerate(batch):
            expected = predictor(image)
            count = int(served[f"{name}/num_detections"][index])
            assert count == len(expected.boxes) > 0
            for key in ("boxes", "scores", "classes"):
                np.testing.assert_allclose(
                    served[f"{name}/{key}"][index][:count],
                    getattr(expected, key),
                    rtol=1e-4,
                    atol=1e-4,
                    err_msg=f"{name} {key}",
                )


def test_exporting_again_replaces_a_saved_model_and_nothing_else(run, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("x")
    with pytest.raises(FileExistsError, match="holds no SavedModel"):
        export(run, tmp_path / "precious")
    assert (tmp_path / "precious/file").read_text() == "x"


def test_a_keras_file_round_trips_with_decoding(run, tmp_path):
    run.detector.save(tmp_path / "detector.keras")
    loaded = keras.models.load_model(tmp_path / "detector.keras", compile=False)
    image = images(np.random.default_rng(1), 50, 70, 3)
    expected = Predictor(run)(image)
    actual = Predictor(Run(run.config, loaded, run.categories, run.checkpoint, 0))(image)
    for key in ("boxes", "scores", "classes"):
        np.testing.assert_allclose(getattr(actual, key), getattr(expected, key), rtol=1e-6)


def test_predicting_files_draws_reports_and_skips(run, tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    for sub in ("a", "b"):
        (folder / sub).mkdir(parents=True)
        pixels = images(np.random.default_rng(2), 40, 60, 3)
        Image.fromarray(pixels).save(folder / sub / "same.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    found, failed = predict_files(run, [folder], tmp_path / "out", min_score=0.0)
    assert len(found) == 2 and list(failed) == [str(folder / "broken.jpg")]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "same.jpg",
        "same_2.jpg",
        "predictions.json",
    }
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    first = found[written["images"][0]["file"]]
    boxes = [d["box_xyxy"] for d in written["images"][0]["detections"]]
    np.testing.assert_array_equal(np.float32(boxes), first.boxes)
    assert [d["category_id"] for d in written["images"][0]["detections"]] == [
        10 * c for c in first.classes
    ]
    assert len(written["unreadable"]) == 1


def test_predicting_never_writes_among_the_images(run, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(FileExistsError, match="give another --out"):
        predict_files(run, [tmp_path / "a.jpg"], tmp_path)
    assert (tmp_path / "a.jpg").read_bytes() == before


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_a_wrong_array_is_a_clear_error(run, image):
    with pytest.raises(ValueError, match=r"expected \[height, width, 3\] uint8, got"):
        Predictor(run)(image)
