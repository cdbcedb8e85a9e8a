"""The whole analysis of detections that err: its files, its numbers, and the page in a browser."""

import base64
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from perturbed import perturbed_results, random_dataset
from PIL import Image

from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.evaluation.coco import evaluate_detections

pytest.importorskip("hotcoco", reason="needs the extra analysis")

from sepc_tf.analysis import analyze

pytestmark = pytest.mark.same_on_both_stacks

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
FIGURES = ("precision_recall", "f1", "confusion", "errors", "groups", "calibration")


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """(data set, detections, folder, report)."""
    root = make_demo_dataset(tmp_path_factory.mktemp("data") / "demo", 0, val_images=12)
    dataset = CocoDataset.load(root / "annotations/instances_val.json", root / "val")
    results = perturbed_results(dataset, 1)
    out = tmp_path_factory.mktemp("analysis") / "out"
    return dataset, results, out, analyze(dataset, results, out, "a <run>", [0.33], worst=3)


def test_numbers_are_those_of_pycocotools(analysed):
    dataset, results, out, report = analysed
    assert json.loads((out / "analysis.json").read_text()) == report
    metrics = evaluate_detections(dataset, results, [0.33])
    assert report["metrics"] == metrics.summary and "mAP@0.33" in report["metrics"]
    assert {item["name"]: item["AP"] for item in report["classes"]} == metrics.per_class
    assert report["errors"]["ap50"] == pytest.approx(metrics.AP50)
    ap50 = [item["AP50"] for item in report["classes"] if item["objects"]]
    assert np.mean(ap50) == pytest.approx(metrics.AP50)
    objects = len(dataset.coco.anns)
    assert report["data"]["objects"] == objects and report["detections"] == len(results)
    assert np.sum(report["confusion"]["matrix"][:-1]) == objects
    for groups in report["groups"].values():
        assert sum(group["objects"] for group in groups) == objects
    worst = report["worst"]
    assert len(worst) == 3 and worst[0]["f1"] <= worst[-1]["f1"] < 1


def test_the_page_has_everything_inside(analysed):
    _, _, out, report = analysed
    html = (out / "analysis.html").read_text()
    assert not re.search(r"<script|<link|<iframe|https?:|src=\"(?!data:)|url\(", html)
    pictures = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    files = [out / f"{name}.png" for name in FIGURES]
    files += [out / f"worst_{number:02d}.jpg" for number in (1, 2, 3)]
    assert {base64.b64decode(text) for text in pictures} == {file.read_bytes() for file in files}
    for file in files:
        assert np.asarray(Image.open(file)).std() > 5, f"{file.name} is blank"
    assert "Analysis of a &lt;run&gt;" in html
    for item in report["classes"]:
        assert f"<td>{item['name']}</td>" in html or not item["objects"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["analysis.html", "analysis.json", *(file.name for file in files)]
    )


def test_a_browser_shows_the_page(analysed, tmp_path):
    """SEPC_TF_CHROMIUM names a browser that is not on the PATH."""
    installed = [path for path in map(shutil.which, BROWSERS) if path]
    browser = os.environ.get("SEPC_TF_CHROMIUM") or next(iter(installed), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    _, _, out, _ = analysed
    picture = tmp_path / "page.png"
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,6000"),
        *(f"--screenshot={picture}", (out / "analysis.html").as_uri()),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    shown = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert shown.shape == (6000, 1200, 3)
    # A figure stands in it pixel by pixel, at the left edge of the page's 1140 px.
    figure = np.asarray(Image.open(out / "errors.png").convert("RGB")).astype(int)
    height, width = figure.shape[:2]
    column = shown[:, 30 : 30 + width]
    middle = np.abs(column - figure[height // 2]).max(axis=(1, 2)) < 3
    tops = np.flatnonzero(middle) - height // 2
    assert any(np.abs(column[top : top + height] - figure).max() < 3 for top in tops)


def test_nothing_detected_and_images_that_cannot_be_read(tmp_path):
    report = analyze(random_dataset(images=4), [], tmp_path, "nothing", worst=2)
    assert report["metrics"]["AP"] == 0 and report["best_threshold"] is None
    html = (tmp_path / "analysis.html").read_text()
    assert "Nothing was detected." in html and "There is none with an error" in html
