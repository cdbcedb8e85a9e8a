"""Maps of semantic labels: from a file to the labels of a training image, and bad ones."""

import numpy as np
import pytest
from PIL import Image

from sepc_tf.config import load_config
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.config import AugmentationConfig
from sepc_tf.data.semantic_maps import SemanticMaps, training_map
from sepc_tf.data.sources import training_pipeline
from sepc_tf.errors import ConfigError, DatasetError
from sepc_tf.ops.semantic_labels import UNKNOWN

pytestmark = pytest.mark.same_on_both_stacks

SIZES = [(30, 40), (24, 36), (40, 30)]
BLOCK = 6  # pixels of one label


@pytest.fixture
def data(tmp_path):
    """A data set of which every pixel's red is 10 times its label, and the folder of its maps."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    maps = tmp_path / "maps"
    maps.mkdir()
    for index, (height, width) in enumerate(SIZES):
        rng = np.random.default_rng(index)
        labels = rng.integers(1, 20, (height // BLOCK + 1, width // BLOCK + 1))
        labels = labels.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width].astype(np.uint8)
        Image.fromarray(np.stack([10 * labels] * 3, axis=-1)).save(tmp_path / f"{index}.png")
        Image.fromarray(labels).save(maps / f"{index}.png")
        content["images"].append(
            {"id": index + 1, "file_name": f"{index}.png", "width": width, "height": height}
        )
        square = [2, 2, 20, 2, 20, 20, 2, 20]
        content["annotations"].append(
            {"id": index + 1, "image_id": index + 1, "category_id": 1, "bbox": [2, 2, 18, 18]}
            | {"segmentation": [square]}
        )
    dataset = CocoDataset.from_content(
        content, lambda name: (tmp_path / name).read_bytes, "labelled"
    )
    return dataset, maps


def make_config(maps, *overrides):
    settings = (
        f"data.semantic_maps={maps}",
        "data.short_side=[40, 70]",
        "data.short_side_mode=range",
        "data.long_side=200",
        "data.skip_empty_images=false",
        "train.batch_size=2",
    )
    return load_config("configs/htc_r50_fpn_1x.yaml", [*settings, *overrides])


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_labels_follow_the_pixels_of_their_image(data, convention):
    """Resized, mirrored, cropped, put on a canvas: away from edges the pixel shows its label."""
    dataset, maps = data
    config = make_config(maps, f"detector.convention={convention}")
    config.data.augmentation = AugmentationConfig(
        crop_probability=0.5, crop_scale=[0.6, 0.9], expand_probability=0.3, min_visible=0.0
    )
    pipeline = training_pipeline(dataset, config, masks=True)
    assert 0 < sum(pipeline.plan(epoch).flips.sum() for epoch in range(2)) < 8
    compared = 0
    for epoch in range(2):
        for batch in pipeline.for_epoch(epoch):
            images, labels = batch["images"].numpy()[..., 0], batch["semantic"].numpy()
            assert labels.dtype == np.uint8 and labels.shape == images.shape
            for image, found, (height, width) in zip(images, labels, batch["image_sizes"]):
                padding = 0 if convention == "mmdet1" else UNKNOWN
                assert (found[height:] == padding).all() and (found[:, width:] == padding).all()
                inner = found[: int(height), : int(width)]
                for y, x in np.ndindex(*(n - 4 for n in inner.shape)):
                    near = inner[y : y + 5, x : x + 5]
                    if (near == near[0, 0]).all() and near[0, 0] != UNKNOWN:
                        assert image[y + 2, x + 2] == 10 * near[0, 0]
                        compared += 1
    assert compared > 4_000


def test_nearest_pixels_against_loops():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 255, (20, 30)).astype(np.uint8)
    geometry = {"window": (4, 3, 28, 19), "place": (5, 2), "canvas_size": (25, 40)}
    geometry |= {"size": (33, 54), "padded_size": (64, 64), "flip": True}
    got = {c: training_map(labels, **geometry, convention=c) for c in ("modern", "mmdet1")}
    for y, x in np.ndindex(33, 54):
        for convention, shift in (("modern", 0.5), ("mmdet1", 0.0)):
            row, column = int((y + shift) * 25 / 33), int((53 - x + shift) * 40 / 54)
            row, column = row - 2 + 3, column - 5 + 4
            inside = 3 <= row < 19 and 4 <= column < 28
            assert got[convention][y, x] == (labels[row, column] if inside else UNKNOWN)


def test_missing_maps_are_counted_in_one_message(data):
    dataset, maps = data
    (maps / "1.png").unlink()
    with pytest.raises(DatasetError, match=r"maps: 1 of 3 images have no map there, as 1\.png"):
        training_pipeline(dataset, make_config(maps), masks=True)
    with pytest.raises(ConfigError, match=r"data\.semantic_maps.*nowhere"):
        training_pipeline(dataset, make_config(maps / "nowhere"), masks=True)


@pytest.mark.parametrize(
    "picture, message",
    [
        (np.zeros((30, 41), np.uint8), "is 41 x 30 pixels, the image 40 x 30"),
        (np.zeros((30, 40, 3), np.uint8), "of the kind RGB: expected a grey or palette"),
        (np.full((30, 40), 183, np.uint8), r"label 183: expected 0 \.\. 182"),
        (b"no picture", "cannot be read"),
    ],
)
def test_a_map_that_cannot_be_used_is_named(data, caplog, picture, message):
    dataset, maps = data

    def spoil(index):
        path = maps / f"{index}.png"
        if isinstance(picture, bytes):
            path.write_bytes(picture)
        else:
            Image.fromarray(picture).save(path)

    spoil(0)  # the first one is looked at before the training
    with pytest.raises(DatasetError, match=rf"0\.png: its semantic map .*{message}"):
        training_pipeline(dataset, make_config(maps), masks=True)
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(maps / "0.png")
    spoil(2)  # the others when it is their turn: as an image that cannot be read
    pipeline = training_pipeline(dataset, make_config(maps, "train.batch_size=1"), masks=True)
    assert len(list(pipeline.for_epoch(0))) == 3
    assert dict(pipeline.unreadable) == {"2.png": 1} and "2.png: its semantic map" in caplog.text


def test_palettes_hold_labels(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "b.png")
    record = type("Record", (), {"file_name": "a/b.jpg", "height": 3, "width": 4})
    np.testing.assert_array_equal(SemanticMaps(tmp_path, 12).read(record), labels)


def test_maps_that_have_no_effect_or_no_classes_are_refused():
    with pytest.raises(ConfigError, match=r"no effect: only detector\.type: htc"):
        load_config("configs/mask_rcnn_r50_fpn_1x.yaml", ["data.semantic_maps=maps"])
    without = ["data.semantic_maps=maps", "detector.options.semantic.enabled=false"]
    without += ["detector.options.semantic.classes=null"]
    with pytest.raises(ConfigError, match="no effect"):
        load_config("configs/htc_r50_fpn_1x.yaml", without)
    with pytest.raises(ConfigError, match=r"needs detector\.options\.semantic\.classes"):
        make_config("maps", "detector.options.semantic.classes=null")
