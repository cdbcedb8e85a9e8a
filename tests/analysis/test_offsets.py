"""The sampling positions that are drawn are those that the convolution samples."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_run import image, small_run

from sepc_tf import cli
from sepc_tf.analysis.offsets import object_samplings, tap_positions
from sepc_tf.errors import ConfigError
from sepc_tf.layers import ScaleEqualizingConv

pytestmark = pytest.mark.same_on_both_stacks
RNG = np.random.default_rng(0)


def bilinear(x, row, column):
    """`x[row, column]` between pixels, zero outside; x is `[H, W, C]`."""
    top, left = int(np.floor(row)), int(np.floor(column))
    total = np.zeros(x.shape[-1])
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < x.shape[0] and 0 <= j < x.shape[1]:
                total = total + (1 - abs(row - i)) * (1 - abs(column - j)) * x[i, j]
    return total


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_reading_at_the_positions_gives_the_output_of_the_layer(padding):
    conv = ScaleEqualizingConv(4, padding=padding)
    x = RNG.standard_normal([1, 7, 9, 3]).astype(np.float32)
    conv.build([x.shape])
    conv.kernel.assign(RNG.standard_normal(conv.kernel.shape))
    conv.offset.kernel.assign(0.3 * RNG.standard_normal(conv.offset.kernel.shape))
    conv.offset.bias.assign(RNG.standard_normal(conv.offset.bias.shape))
    kernel = np.asarray(tf.convert_to_tensor(conv.kernel)).reshape(9, 3, 4)
    for deform in (True, False):
        output = conv.convolve(tf.constant(x), deform)
        for cell in ((0, 0), (3, 4), tuple(n - 1 for n in output.shape[1:3])):
            plain, moved = tap_positions(conv, tf.constant(x), cell, deform)
            assert np.array_equal(plain, moved) == (not deform)
            value = sum(bilinear(x[0], *at) @ taps for at, taps in zip(moved, kernel))
            np.testing.assert_allclose(output[0, cell[0], cell[1]], value, atol=2e-4)


def test_the_cell_is_where_the_class_scores_highest_in_the_box():
    run = small_run("retinanet", "sepc_lite")
    pixels = image(size=(64, 96))
    outputs = run.detector((pixels[None].astype(np.float32) - 100) / 50, training=False)[
        "classification"
    ]
    box, label = [16, 8, 80, 56], 1
    best = max(
        (float(logit), level, cell)
        for level, x in enumerate(outputs)
        for cell in np.ndindex(*x.shape[1:3])
        for logit in np.reshape(x[0, cell[0], cell[1]], [-1, 3])[:, label]
        if 16 <= (cell[1] + 0.5) * 8 * 2**level <= 80 and 8 <= (cell[0] + 0.5) * 8 * 2**level <= 56
    )
    [found] = object_samplings(run, pixels, [box], [label])
    assert (found.level, found.cell) == best[1:]
    np.testing.assert_allclose(found.score, 1 / (1 + np.exp(-best[0])), rtol=1e-4)
    assert found.stride == 8 * 2**found.level and found.size == (64, 96)
    centre = (np.array(found.cell)[::-1] + 0.5) * found.stride
    np.testing.assert_allclose(found.plain[4], centre)
    # In an image of half the size the same places have half the coordinates.
    [half] = object_samplings(run, pixels[::2, ::2], np.array([box]) / 2, [label])
    assert np.shape(half.sampled["class"]) == (9, 2) and half.size == (64, 96)
    np.testing.assert_allclose(half.plain[4], (np.array(half.cell)[::-1] + 0.5) * half.stride / 2)


def test_a_head_without_offsets_is_refused():
    with pytest.raises(ConfigError, match=r"expected detector.head.variant sepc_lite or sepc, got"):
        object_samplings(small_run("retinanet", "pconv_ibn"), image(), [[0, 0, 9, 9]], [0])


def test_the_command_on_the_packaged_model(tmp_path, monkeypatch, capsys):
    from sepc_tf.data.demo import make_demo_dataset

    monkeypatch.chdir(tmp_path)
    data = make_demo_dataset(tmp_path / "data", 0, val_images=1)
    file = data / "val/000001.jpg"
    assert cli.main(["analyze", "offsets", "--model", "demo", "--image", str(file)]) == 0
    report = json.loads((tmp_path / "analysis/offsets.json").read_text())
    small, large = report["samplings"]
    assert small["level"] < large["level"]
    assert small["size"] == [288, 288] and large["size"] == [576, 576]
    assert all(0.2 < shift < 5 for s in (small, large) for shift in s["shift"].values())
    with Image.open(tmp_path / "analysis/offsets.png") as picture:
        assert picture.width > 800

    arguments = ["analyze", "offsets", "--model", "demo", "--image", str(file)]
    for more, message in (
        (["--zoom", "0"], "--zoom: expected a number within"),
        (["--checkpoint", "last"], "--checkpoint is one of --run-dir"),
    ):
        assert cli.main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
