"""A SavedModel serves what `Predictor` returns, in a process that has only TensorFlow."""

import errno
import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sepc_tf.config import load_config
from sepc_tf.data.images import decode_image
from sepc_tf.errors import OutputError
from sepc_tf.export import export
from sepc_tf.predict import Predictor, predict_files
from sepc_tf.runs import Run
from sepc_tf.zoo import build_detector

ROOT = Path(__file__).parents[2]
SERVE = """
import json, sys
import numpy as np
import tensorflow as tf

signatures = tf.saved_model.load(sys.argv[1]).signatures
assert sorted(signatures) == ["serving_bytes", "serving_default"]
inputs = np.load(sys.argv[2])
results = {}
for name in inputs.files:
    if name == "bytes":  # files laid end to end, cut by their lengths
        ends = np.cumsum(inputs["lengths"])[:-1]
        files = [part.tobytes() for part in np.split(inputs["bytes"], ends)]
        outputs = signatures["serving_bytes"](image_bytes=tf.constant(files))
    elif name == "lengths":
        continue
    else:
        outputs = signatures["serving_default"](images=tf.constant(inputs[name]))
    results |= {f"{name}/{key}": value.numpy() for key, value in outputs.items()}
np.savez(sys.argv[3], **results)
foreign = [name for name in ("sepc_tf", "keras_cv", "keras") if name in sys.modules]
assert "sepc_tf" not in foreign and "keras_cv" not in foreign, foreign
"""


def build_run(config):
    """A detector with random weights that still finds things: every score counts."""
    keras.utils.set_random_seed(3)
    config = load_config(
        ROOT / f"configs/{config}.yaml",
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


@pytest.fixture(scope="module")
def run():
    return build_run("demo_sepc")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="module")
def light_run():
    """One that is exported in little time."""
    return build_run("demo_baseline")


def images(generator, *shape):
    return generator.integers(0, 256, shape, np.uint8)


def encoded(pixels, form, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def encoded_images(generator):
    """Files of several sizes and kinds, one of which has to be turned."""
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        encoded(images(generator, 64, 96, 3), "JPEG", quality=90),
        encoded(images(generator, 61, 83, 3), "JPEG", exif=turned),
        encoded(images(generator, 47, 131, 3), "PNG"),
        encoded(images(generator, 70, 70), "JPEG"),
    ]


def assert_serves(served, expected):
    """The served arrays of one image are those of `Predictor`, and none is left out."""
    count = int(served["num_detections"])
    assert count == len(expected.boxes) > 0
    for key in ("boxes", "scores", "classes"):
        np.testing.assert_allclose(
            served[key][:count], getattr(expected, key), rtol=1e-4, atol=1e-4, err_msg=key
        )


def test_the_saved_model_equals_predict_in_a_bare_process(run, exported, tmp_path):
    generator = np.random.default_rng(0)
    batches = {
        "one": images(generator, 1, 64, 96, 3),
        "two": images(generator, 2, 61, 83, 3),
        "tall": images(generator, 2, 131, 47, 3),
        "tiny": images(generator, 1, 9, 7, 3),
    }
    files = encoded_images(generator)
    assert [c["name"] for c in json.loads((exported / "categories.json").read_text())] == [*"abc"]
    np.savez(
        tmp_path / "in.npz",
        **batches,
        bytes=np.frombuffer(b"".join(files), np.uint8),
        lengths=[len(file) for file in files],
    )
    subprocess.run(
        [sys.executable, "-c", SERVE, exported, tmp_path / "in.npz", tmp_path / "out.npz"],
        check=True,
        cwd=tmp_path,
    )
    served = np.load(tmp_path / "out.npz")
    predictor = Predictor(run)
    expected = {name: [predictor(image) for image in batch] for name, batch in batches.items()}
    expected["bytes"] = [predictor(decode_image(file)) for file in files]
    keys = ("boxes", "scores", "classes", "num_detections")
    for name, detections in expected.items():
        for index, of_image in enumerate(detections):
            assert_serves({key: served[f"{name}/{key}"][index] for key in keys}, of_image)


def test_served_photographs_equal_predict_exactly(run, exported, coco128_dir):
    """Decoded as TensorFlow does by default they would not: the signature is there for that."""
    paths = sorted((coco128_dir / "train2017").glob("*.jpg"))[:4]
    loaded = tf.saved_model.load(str(exported))
    serve = loaded.signatures
    predictor = Predictor(run)
    contents = [path.read_bytes() for path in paths]
    served = serve["serving_bytes"](image_bytes=tf.constant(contents))
    default_differs = 0.0
    for index, path in enumerate(paths):
        expected = predictor(path)
        count = len(expected.boxes)
        assert int(served["num_detections"][index]) == count > 0
        for key in ("boxes", "scores", "classes"):
            np.testing.assert_array_equal(served[key][index][:count], getattr(expected, key), key)
        # The README's way, pixels that the caller decodes, with its option and without.
        accurate = tf.io.decode_jpeg(contents[index], channels=3, dct_method="INTEGER_ACCURATE")
        scores = serve["serving_default"](images=accurate[None])["scores"][0][:count]
        np.testing.assert_array_equal(scores, expected.scores)
        fast = tf.io.decode_jpeg(contents[index], channels=3)
        scores = serve["serving_default"](images=fast[None])["scores"][0][:count]
        default_differs = max(default_differs, np.abs(scores - expected.scores).max())
    assert default_differs > 1e-6


def test_a_served_file_that_is_no_image_is_an_error(exported):
    loaded = tf.saved_model.load(str(exported))
    serve = loaded.signatures["serving_bytes"]
    with pytest.raises(tf.errors.InvalidArgumentError):
        serve(image_bytes=tf.constant([b"no image"]))
    assert serve(image_bytes=tf.constant([], tf.string))["boxes"].shape[0] == 0


def test_exporting_again_replaces_a_saved_model(light_run, tmp_path):
    directory = export(light_run, tmp_path / "model")
    (directory / "left_over").write_text("of the first export")
    image = tf.constant(images(np.random.default_rng(4), 1, 50, 60, 3))
    first = tf.saved_model.load(str(directory)).signatures["serving_default"](images=image)

    assert export(light_run, directory) == directory
    assert not (directory / "left_over").exists(), "the folder is a new one"
    second = tf.saved_model.load(str(directory)).signatures["serving_default"](images=image)
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], key)

    # Other weights: the second export is not the first one left in place.
    bias = next(v for v in light_run.detector.head.trainable_variables if v.shape.rank == 1)
    before = bias.numpy()
    try:
        bias.assign(before + 1)
        export(light_run, directory)
    finally:
        bias.assign(before)
    third = tf.saved_model.load(str(directory)).signatures["serving_default"](images=image)
    assert not np.array_equal(first["scores"], third["scores"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left beside it"


def test_two_exports_to_one_place_wait_for_each_other(light_run, tmp_path, monkeypatch):
    active, most = [], []

    def save(server, path, *options):
        active.append(path)
        most.append(len(active))
        Path(path).mkdir()
        (Path(path) / "saved_model.pb").write_text("x")
        time.sleep(0.1)
        active.remove(path)

    monkeypatch.setattr(tf.saved_model, "save", save)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(export, [light_run] * 3, [tmp_path / "model"] * 3))
    assert most == [1, 1, 1] and len(results) == 3
    assert (tmp_path / "model/categories.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_foreign_folder_is_refused_and_stays(light_run, tmp_path, monkeypatch):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("x")
    with pytest.raises(OutputError, match="holds no SavedModel"):
        export(light_run, tmp_path / "precious")
    with pytest.raises(OutputError, match="holds no SavedModel"):
        export(light_run, tmp_path / "precious/file")
    with pytest.raises(OutputError, match=r"cannot write .*precious/file: "):
        export(light_run, tmp_path / "precious/file/model")
    assert (tmp_path / "precious/file").read_text() == "x"
    # Even where it holds a SavedModel: a shell would be left in a folder that is gone.
    (tmp_path / "precious/saved_model.pb").write_text("x")
    (tmp_path / "precious/below").mkdir()
    monkeypatch.chdir(tmp_path / "precious/below")
    for place in (".", "..", tmp_path):
        with pytest.raises(OutputError, match="is where this command runs"):
            export(light_run, place)
    assert len(list((tmp_path / "precious").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_an_export_that_fails_leaves_the_old_one_and_nothing_else(light_run, tmp_path, monkeypatch):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "saved_model.pb").write_text("the old one")
    (tmp_path / "model.partial").mkdir()  # a user's own, whatever its name
    (tmp_path / "model.partial/file").write_text("x")

    (tmp_path / ".model.sepc-tf.partial/model").mkdir(parents=True)  # of an export that was killed

    def fail(server, path, *options):
        Path(path).mkdir()
        (Path(path) / "saved_model.pb").write_text("half")
        raise tf.errors.ResourceExhaustedError(None, None, "no space")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OutputError, match=r"model: no space \(\d+\.\d MB are needed, .* free some"):
        export(light_run, directory)
    assert (directory / "saved_model.pb").read_text() == "the old one"
    assert (tmp_path / "model.partial/file").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.partial"]


def test_keras_own_export_says_what_to_call(light_run, tmp_path):
    with pytest.raises(TypeError, match=r"sepc_tf\.export\(run, "):
        light_run.detector.export(str(tmp_path / "model"))


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": -11}, "limit: expected at least 1, got -11"),
        ({"min_score": float("nan")}, "min_score: expected a number within 0..1, got nan"),
    ],
)
def test_options_out_of_range_are_refused(run, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        predict_files(run, [tmp_path], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_an_error(run, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"there is no image in .*; expected .*\.jpg"):
        predict_files(run, [tmp_path], tmp_path / "out")


def test_a_picture_that_cannot_be_written_is_one_message(run, tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")

    def save(image, file, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OutputError, match=r"cannot write .*out/a\.jpg: No space left .* free some"):
        predict_files(run, [tmp_path / "a.png"], tmp_path / "out")


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_a_wrong_array_is_a_clear_error(run, image):
    with pytest.raises(ValueError, match=r"expected \[height, width, 3\] uint8, got"):
        Predictor(run)(image)
