import dataclasses
import json
import logging

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sepc_tf.config import Config
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.config import AugmentationConfig
from sepc_tf.data.images import ORIENTATION
from sepc_tf.data.pipeline import BatchPipeline
from sepc_tf.data.preprocess import preprocess_image
from sepc_tf.data.segmentations import (
    FEW_POINTS,
    MISSING,
    OTHER_SIZE,
    OUTSIDE_BOX,
    encode_mask,
)
from sepc_tf.data.sources import evaluation_pipeline, training_pipeline
from sepc_tf.errors import DatasetError
from sepc_tf.ops.bitmaps import read_bitmaps
from sepc_tf.ops.pixels import IMAGENET_MEAN, IMAGENET_STD, normalized_batch

PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def make_dataset(root, sizes, boxes_of=lambda i: [[2, 4, 10, 12]]):
    """Images of one grey level each (10 * index), of the given (height, width)."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    for index, (height, width) in enumerate(sizes):
        name = f"{index}.png"
        pixels = np.full((height, width, 3), 10 * index % 256, np.uint8)
        pixels[:, : width // 4] = 200  # left and right differ
        Image.fromarray(pixels).save(root / name)
        image_id = 100 + index
        content["images"].append(
            {"id": image_id, "file_name": name, "width": width, "height": height}
        )
        for box in boxes_of(index):
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {"id": number, "image_id": image_id, "category_id": 1, "bbox": box}
            )

    def reader(name):
        return (root / name).read_bytes

    return CocoDataset.from_content(content, reader, "made up")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """9 landscape, 4 portrait and 2 square images, number 3 without boxes."""
    sizes = [(20 + i, 40) for i in range(9)] + [(40, 30)] * 4 + [(32, 32)] * 2
    boxes = {3: [], 5: [[2, 4, 10, 12], [0, 0, 40, 10], [1, 1, 5, 5]]}
    return make_dataset(
        tmp_path_factory.mktemp("images"), sizes, lambda i: boxes.get(i, [[2, 4, 10, 12]])
    )


def make_pipeline(dataset, training=True, **options):
    options = {"batch_size": 4, "short_side": 32, "long_side": 64, "seed": 5, **options}
    return BatchPipeline(dataset, training=training, **options)


def to_numpy(batches):
    return [{name: value.numpy() for name, value in batch.items()} for batch in batches]


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_have_the_contracts_shapes_and_types(dataset):
    pipeline = make_pipeline(dataset)
    batches = to_numpy(pipeline.for_epoch(0))
    assert len(batches) == pipeline.steps_per_epoch == 3 + 2
    assert len(pipeline.for_epoch(0)) == 5
    for batch in batches:
        _, height, width, _ = batch["images"].shape
        assert height % 32 == 0 and width % 32 == 0
        most = 4 if 105 in batch["image_ids"] else 1  # image 105 has three boxes
        for name, shape, dtype in (
            ("images", (4, height, width, 3), np.uint8),
            ("pixel_mean", (4, 3), np.float32),
            ("pixel_std", (4, 3), np.float32),
            ("image_sizes", (4, 2), np.int32),
            ("original_sizes", (4, 2), np.int32),
            ("boxes", (4, most, 4), np.float32),
            ("labels", (4, most), np.int32),
            ("image_ids", (4,), np.int64),
        ):
            assert batch[name].shape == shape and batch[name].dtype == dtype
        assert ((batch["boxes"] == -1).all(-1) == (batch["labels"] == -1)).all()
        ratios = batch["original_sizes"][:, 1] > batch["original_sizes"][:, 0]
        assert ratios.all() or not ratios.any(), "landscape and portrait images are not mixed"
    assert any((batch["labels"] == -1).all(1).any() for batch in batches), "image without boxes"
    shown = np.concatenate([batch["image_ids"] for batch in batches])
    assert set(shown) == {image.image_id for image in dataset.images}


def test_pixels_sizes_and_boxes_are_the_images(dataset):
    records = {image.image_id: image for image in dataset.images}
    for batch in to_numpy(make_pipeline(dataset, training=False).for_epoch()):
        for number, image_id in enumerate(batch["image_ids"]):
            if image_id < 0:
                continue
            record = records[image_id]
            height, width = batch["image_sizes"][number]
            np.testing.assert_array_equal(
                batch["original_sizes"][number], [record.height, record.width]
            )
            expected = preprocess_image(record.read(), 32, 64, IMAGENET_MEAN, IMAGENET_STD)
            assert expected.shape == (height, width, 3)
            image = batch["images"][number]
            np.testing.assert_allclose(image[:height, :width], expected, atol=1e-6)
            assert not image[height:].any() and not image[:, width:].any()
            scale = np.array([width / record.width, height / record.height] * 2)
            count = len(record.boxes)
            np.testing.assert_allclose(batch["boxes"][number, :count], record.boxes * scale, 1e-5)
            assert (batch["boxes"][number, count:] == -1).all()
            np.testing.assert_array_equal(batch["labels"][number, :count], record.labels)


def test_training_pixels_are_those_of_evaluation_to_rounding(dataset):
    records = {image.image_id: image for image in dataset.images}
    for batch in make_pipeline(dataset).for_epoch():
        batch = {name: value.numpy() for name, value in normalized_batch(batch).items()}
        for image, image_id, size in zip(batch["images"], batch["image_ids"], batch["image_sizes"]):
            height, width = size
            pixels = records[image_id].read()
            expected = preprocess_image(pixels, 32, 64, IMAGENET_MEAN, IMAGENET_STD)
            levels = np.abs(image[:height, :width] - expected) * IMAGENET_STD
            assert levels.max() <= 0.85
            assert not image[height:].any() and not image[:, width:].any()


def test_flip_mirrors_pixels_and_boxes(dataset):
    plain = make_pipeline(dataset, **PLAIN)
    mirrored = make_pipeline(dataset, flip_probability=1.0, **PLAIN)
    for a, b in zip(to_numpy(plain.for_epoch(1)), to_numpy(mirrored.for_epoch(1))):
        np.testing.assert_array_equal(a["image_ids"], b["image_ids"])
        for number, (height, width) in enumerate(a["image_sizes"]):
            np.testing.assert_allclose(
                a["images"][number, :height, :width].astype(int),
                b["images"][number, :height, :width][:, ::-1].astype(int),
                atol=1,
            )
            valid = a["labels"][number] >= 0
            x1, y1, x2, y2 = a["boxes"][number, valid].T
            np.testing.assert_allclose(
                b["boxes"][number, valid].T, [width - x2, y1, width - x1, y2], atol=1e-4
            )


def test_same_seed_same_batches_other_epoch_or_seed_others(dataset):
    options = {"short_side": (24, 40), "flip_probability": 0.5}
    first = to_numpy(make_pipeline(dataset, **options).for_epoch(2))
    assert_equal_batches(first, to_numpy(make_pipeline(dataset, **options).for_epoch(2)))
    order = make_pipeline(dataset, **options).plan(2).indices
    assert (order != make_pipeline(dataset, **options).plan(3).indices).any()
    assert (order != make_pipeline(dataset, seed=6, **options).plan(2).indices).any()


def test_number_of_parallel_reads_does_not_matter(dataset):
    options = {"short_side": (24, 40), "flip_probability": 0.5}
    assert_equal_batches(
        to_numpy(make_pipeline(dataset, num_parallel=1, **options).for_epoch(0)),
        to_numpy(make_pipeline(dataset, num_parallel=8, **options).for_epoch(0)),
    )


@pytest.mark.parametrize("start", [0, 3, 5, 12])
def test_training_continues_at_any_step_as_if_never_stopped(dataset, start):
    options = {"short_side": (24, 40), "flip_probability": 0.5}
    pipeline = make_pipeline(dataset, **options)
    whole = [batch for epoch in range(4) for batch in to_numpy(pipeline.for_epoch(epoch))]
    continued = to_numpy(make_pipeline(dataset, **options).training_batches(start).take(7))
    assert_equal_batches(continued, whole[start : start + 7])
    assert_equal_batches(to_numpy(pipeline.for_epoch(1, start_batch=2)), whole[7:10])
    assert len(pipeline.for_epoch(1, start_batch=2)) == 3
    files = pipeline.files_of_step(start)
    assert dataset.file_names(whole[start]["image_ids"]) == files


def test_nothing_is_decoded_to_get_to_a_step(tmp_path):
    sizes = [(20, 20)] * 12
    opened = []
    dataset = make_dataset(tmp_path, sizes)
    pipeline = make_pipeline(dataset, batch_size=2, num_parallel=1)
    original = BatchPipeline._read

    def counting(self, index, seed, counted):
        opened.append(int(index))
        return original(self, index, seed, counted)

    pipeline._read = counting.__get__(pipeline)
    batch = next(iter(pipeline.training_batches(600 * 6 + 4)))
    np.testing.assert_array_equal(batch["image_ids"], pipeline.plan(600).indices[4] + 100)
    # A few batches are read ahead, none behind: the first read is that of the batch asked for.
    assert opened[:2] == list(pipeline.plan(600).indices[4])


def test_scale_jitter(dataset):
    values = make_pipeline(dataset, short_side=[24, 30, 36], scale_mode="value", batch_size=15)
    drawn = np.concatenate([values.plan(epoch).short_sides.ravel() for epoch in range(20)])
    assert set(drawn) == {24, 30, 36}
    ranged = make_pipeline(dataset, short_side=(24, 30), batch_size=15)
    drawn = np.concatenate([ranged.plan(epoch).short_sides.ravel() for epoch in range(20)])
    assert set(drawn) == set(range(24, 31)), "both ends included"
    for batch in to_numpy(ranged.for_epoch(4)):
        assert set(batch["image_sizes"].min(1)) <= set(range(24, 31))
        assert len(set(batch["image_sizes"].min(1))) > 1, "drawn per image"


def test_flips_have_the_probability_and_evaluation_has_none(dataset):
    pipeline = make_pipeline(dataset, flip_probability=0.25)
    flips = np.concatenate([pipeline.plan(epoch).flips.ravel() for epoch in range(100)])
    assert abs(flips.mean() - 0.25) < 0.03
    assert not make_pipeline(dataset, training=False, flip_probability=1.0).plan(0).flips.any()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 40])
def test_evaluation_shows_every_image_once(dataset, batch_size):
    pipeline = make_pipeline(dataset, training=False, batch_size=batch_size)
    plan = pipeline.plan(0)
    assert plan.indices.shape == (pipeline.steps_per_epoch, batch_size), "all batches are full"
    assert sorted(plan.indices[plan.counted]) == list(range(15))
    np.testing.assert_array_equal(plan.indices, pipeline.plan(1).indices)
    ids = np.concatenate([batch["image_ids"] for batch in to_numpy(pipeline.for_epoch())])
    assert sorted(ids[ids >= 0]) == [image.image_id for image in dataset.images]


def padded_share(sizes, **options):
    """The share of padding in the pixels of an epoch's batches, from the plan and numpy alone."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}", "height": h, "width": w}
            for i, (h, w) in enumerate(sizes.tolist())
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    dataset = CocoDataset.from_content(content, lambda name: None, "sizes")
    plan = make_pipeline(dataset, **options).plan(0)
    scale = np.minimum(1333 / sizes.max(1), 800 / sizes.min(1))
    resized = np.floor(sizes * scale[:, None] + 0.5)[plan.indices]
    padded = np.ceil(resized.max(axis=1) / 32) * 32
    return 1 - resized.prod(-1).sum() / (padded.prod(-1).sum() * plan.indices.shape[1]), plan


def test_neighbours_in_aspect_ratio_share_a_batch():
    sizes = np.random.default_rng(0).integers(300, 640, (400, 2))
    share, plan = padded_share(sizes, batch_size=8)
    assert share < 0.06
    # Sorted within windows only: the batches of an epoch still come in random order.
    widths = (sizes / sizes.min(1, keepdims=True))[plan.indices][..., 1].mean(1)
    assert abs(np.corrcoef(np.arange(len(widths)), widths)[0, 1]) < 0.4


def test_share_of_padding_with_real_sizes(coco128_dir, monkeypatch):
    """The figures of `BatchPipeline`'s docstring: coco128's sizes, drawn 4096 times."""
    path = coco128_dir / "annotations" / "instances_train2017.json"
    images = json.loads(path.read_text())["images"]
    sizes = np.array([(image["height"], image["width"]) for image in images])
    sizes = sizes[np.random.default_rng(0).integers(0, len(sizes), 4096)]
    assert round(padded_share(sizes, batch_size=16)[0], 2) == 0.04
    monkeypatch.setattr("sepc_tf.data.pipeline.SORTED_BATCHES", 1)
    assert round(padded_share(sizes, batch_size=16)[0], 2) == 0.16


def corrupt(dataset_root, index):
    path = dataset_root / f"{index}.png"
    path.write_bytes(path.read_bytes()[:50])


def test_unreadable_image_is_named_counted_and_replaced_in_training(tmp_path, caplog):
    dataset = make_dataset(tmp_path, [(20, 30), (20, 30), (30, 20), (20, 31)])
    corrupt(tmp_path, 1)
    pipeline = make_pipeline(dataset, batch_size=3)
    with caplog.at_level(logging.WARNING, logger="sepc_tf"):
        first = to_numpy(pipeline.for_epoch(0))
    assert dict(pipeline.unreadable) == {"1.png": 1}
    assert caplog.text.count("skipped image 1.png") == 1
    landscape = next(b for b in first if b["original_sizes"][0, 1] > 20)
    # The next one of the same orientation, with its own boxes and id.
    assert sorted(landscape["image_ids"]) == [100, 103, 103]
    assert_equal_batches(first, to_numpy(make_pipeline(dataset, batch_size=3).for_epoch(0)))
    list(pipeline.for_epoch(1))
    assert pipeline.unreadable["1.png"] == 2
    assert caplog.text.count("1.png") == 2, "named once per pipeline, not once per epoch"


def test_unreadable_image_has_no_detections_in_evaluation(tmp_path):
    dataset = make_dataset(tmp_path, [(20, 30)] * 3)
    corrupt(tmp_path, 0)
    pipeline = make_pipeline(dataset, training=False, batch_size=3)
    [batch] = to_numpy(pipeline.for_epoch())
    assert sorted(batch["image_ids"]) == [-1, 101, 102]


def test_unreadable_image_can_stop(tmp_path):
    dataset = make_dataset(tmp_path, [(20, 30)] * 3)
    corrupt(tmp_path, 2)
    with pytest.raises(tf.errors.OpError, match=r"2\.png"):
        list(make_pipeline(dataset, unreadable="stop").for_epoch(0))
    for index in (0, 1):
        corrupt(tmp_path, index)
    message = r"none of its images can be used \(3 tried\); the first was .\.png"
    with pytest.raises(tf.errors.OpError, match=message):
        list(make_pipeline(dataset).for_epoch(0))


@pytest.mark.parametrize("training", [True, False])
def test_the_only_image_of_its_orientation_may_be_unreadable(tmp_path, training):
    dataset = make_dataset(tmp_path, [(30, 20)] * 5 + [(20, 30)] + [(30, 21)] * 6)
    corrupt(tmp_path, 5)
    pipeline = make_pipeline(dataset, training=training, batch_size=3)
    ids = np.concatenate([batch["image_ids"] for batch in to_numpy(pipeline.for_epoch())])
    assert set(ids[ids >= 0]) == {100 + i for i in range(12) if i != 5}
    assert training or len(ids[ids >= 0]) == 11, "what stands in is not counted"
    assert set(pipeline.unreadable) == {"5.png"}


@pytest.mark.parametrize("training", [True, False])
def test_image_of_another_size_than_annotated_is_not_used(tmp_path, caplog, training):
    dataset = make_dataset(tmp_path, [(20, 30)] * 4)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "0.png", exif=exif)
    Image.fromarray(np.zeros((20, 31, 3), np.uint8)).save(tmp_path / "2.png")
    pipeline = make_pipeline(dataset, training=training, batch_size=4)
    with caplog.at_level(logging.WARNING, logger="sepc_tf"):
        [batch] = to_numpy(pipeline.for_epoch())
    assert sorted(batch["image_ids"]) == ([101, 101, 103, 103] if training else [-1, -1, 101, 103])
    assert dict(pipeline.unreadable) == {"0.png": 1, "2.png": 1}
    assert "0.png: annotated 30 x 20, is 20 x 30 (is the EXIF rotation ignored" in caplog.text
    assert "2.png: annotated 30 x 20, is 31 x 20 (" in caplog.text
    with pytest.raises(tf.errors.OpError, match="annotated 30 x 20, is"):
        list(make_pipeline(dataset, training=training, unreadable="stop").for_epoch())


def authors_boxes(record, short_side, long_side, flip):
    """mmdetection 1.x: loading, `Resize`, `RandomFlip`, on the annotated boxes."""
    sides = sorted((record.height, record.width))
    factor = np.float32(min(short_side / sides[0], long_side / sides[1]))
    height, width = (int(side * factor + 0.5) for side in (record.height, record.width))
    boxes = (record.boxes - np.float32([0, 0, 1, 1])) * factor
    boxes[:, 0::2] = np.clip(boxes[:, 0::2], 0, width - 1)
    boxes[:, 1::2] = np.clip(boxes[:, 1::2], 0, height - 1)
    if flip:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]] - 1
    return boxes


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_of_mmdet1_are_the_authors(dataset, flip):
    records = {image.image_id: image for image in dataset.images}
    pipeline = make_pipeline(
        dataset, convention="mmdet1", flip_probability=float(flip), short_side=37
    )
    checked = 0
    for batch in to_numpy(pipeline.for_epoch()):
        for number, image_id in enumerate(batch["image_ids"]):
            expected = authors_boxes(records[image_id], 37, 64, flip)
            got = batch["boxes"][number, batch["labels"][number] >= 0]
            np.testing.assert_allclose(got, expected, atol=2e-5)
            checked += len(got)
    assert checked > 15


def test_box_that_loses_its_sides_to_float32_is_no_object(tmp_path):
    """One step of float32 inside the image as it is, none when enlarged; an object beside it."""
    edge = float(np.nextafter(np.float32(42), np.float32(0)))
    boxes = [[edge, 5, 20, 10], [2, 4, 10, 12], [42 - 1e-7, 5, 20, 20]]
    dataset = make_dataset(tmp_path, [(42, 42)] * 2, lambda i: boxes)
    [record, _] = dataset.images
    assert len(record.boxes) == 2, "the last one has no side in float32 to begin with"
    assert record.boxes[0, 0] < record.boxes[0, 2], "or nothing is tested below"
    for convention, count in (("modern", 1), ("mmdet1", 2)):
        pipeline = make_pipeline(dataset, batch_size=2, short_side=44, convention=convention)
        [batch] = to_numpy(pipeline.for_epoch())
        last = 0 if convention == "modern" else 1
        kept = batch["labels"] >= 0
        assert (kept.sum(1) == count).all() and kept[:, 0].all()
        assert (batch["boxes"][kept][:, 2:] + last > batch["boxes"][kept][:, :2]).all()
        assert (batch["boxes"][~kept] == -1).all()


def test_pipelines_of_a_config_have_its_convention_and_augmentation(dataset, tmp_path):
    config = Config()
    config.detector.convention = "mmdet1"
    config.data.augmentation.hue = 0.1
    training, evaluation = training_pipeline(dataset, config), evaluation_pipeline(dataset, config)
    assert training.convention == evaluation.convention == "mmdet1"
    assert training.augmentation.hue == 0.1 and training.flip_probability == 0.5
    without = make_dataset(tmp_path, [(20, 30)] * 2, lambda i: [[3, 4, 0.5, 10]])
    with pytest.raises(DatasetError, match="no box to train on: 2 of its 2 boxes are dropped"):
        training_pipeline(without, config)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size: expected >= 1, got 0"),
        ({"short_side": 0}, "short_side: expected positive"),
        ({"short_side": 100}, "long_side: expected >= 100, got 64"),
        ({"short_side": (40, 30)}, "short_side: expected low, high"),
        ({"short_side": (30, 32, 40)}, "short_side: expected low, high"),
        ({"short_side": (30, 32), "training": False}, "one value in evaluation"),
        ({"scale_mode": "values"}, "scale_mode: expected 'range' or 'value', got 'values'"),
        ({"flip_probability": 1.5}, "flip_probability: expected within 0..1, got 1.5"),
        ({"mean": (1, 2)}, "mean: expected three numbers"),
        ({"std": (1, 2, 0)}, "std: expected three positive"),
        ({"convention": "mmdet2"}, "convention: expected one of"),
        (
            {"augmentation": AugmentationConfig(crop_scale=[0.9, 0.5])},
            r"data.augmentation.crop_scale: expected \[low, high\], got \[0.9, 0.5\]",
        ),
        ({"unreadable": "ignore"}, "unreadable: expected 'skip' or 'stop', got 'ignore'"),
    ],
)
def test_wrong_arguments_are_named(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(dataset, **options)
    with pytest.raises(ValueError, match="start_batch: expected within"):
        make_pipeline(dataset).for_epoch(0, start_batch=6)


@pytest.mark.parametrize("training", [True, False])
def test_replicas_split_each_global_batch(dataset, two_replicas, training):
    batches = make_pipeline(dataset, training=training).for_epoch(0)
    split = two_replicas.experimental_distribute_dataset(batches)
    for whole, parts in zip(batches, split):
        for name, value in whole.items():
            local = two_replicas.experimental_local_results(parts[name])
            assert [part.shape[0] for part in local] == [2, 2]
            np.testing.assert_array_equal(np.concatenate(local), value)


# Masks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Rectangles in colours of their own as polygons and RLE, one without; image 3 has none."""
    root = tmp_path_factory.mktemp("masked")
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    for index, (height, width) in enumerate([(30, 40), (24, 36), (40, 30), (30, 40)]):
        pixels = np.zeros((height, width, 3), np.uint8)
        content["images"].append(
            {"id": 100 + index, "file_name": f"{index}.png", "width": width, "height": height}
        )
        for number, (x, y, w, h) in enumerate([(3, 4, 12, 9), (16, 6, 10, 15), (2, 18, 20, 5)]):
            if index == 3:
                continue
            pixels[y : y + h, x : x + w, number] = 255
            mask = np.zeros((height, width), np.uint8)
            mask[y : y + h, x : x + w] = 1
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            segmentation = ([polygon], encode_mask(mask), None)[number]
            content["annotations"].append(
                {
                    "id": 10 * index + number + 1,
                    "image_id": 100 + index,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    **({"segmentation": segmentation} if segmentation else {}),
                }
            )
        Image.fromarray(pixels).save(root / f"{index}.png")
    return CocoDataset.from_content(content, lambda name: (root / name).read_bytes, "masked")


def all_masks(batch):
    """`[B, M, H, W]` masks of a batch, read back."""
    _, height, width, _ = batch["images"].shape
    count, objects = batch["offsets"].shape
    return read_bitmaps(
        batch["bitmaps"],
        batch["frames"],
        batch["offsets"],
        np.tile(np.arange(objects, dtype=np.int32), [count, 1]),
        np.arange(height, dtype=np.int32)[None, None, :, None],
        np.arange(width, dtype=np.int32)[None, None, None],
    ).numpy()


ZOOMING = AugmentationConfig(
    crop_probability=0.5, crop_scale=[0.6, 0.9], expand_probability=0.5, expand_ratio=[1.2, 1.6]
)


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_masks_follow_the_pixels(masked, convention):
    """Mirrored, cropped, put on a canvas, scaled: each mask covers its object's colour."""
    options = {"convention": convention, "augmentation": ZOOMING, "flip_probability": 0.5}
    options |= {"batch_size": 2, "short_side": (60, 90), "long_side": 200, "mean": (0, 0, 0)}
    pipeline = make_pipeline(masked, masks=True, **options)
    flips = with_mask = without = 0
    for epoch in range(3):
        flips += pipeline.plan(epoch).flips.sum()
        for batch in to_numpy(pipeline.for_epoch(epoch)):
            length = batch["bitmaps"].shape[1]
            assert length & (length - 1) == 0 and batch["bitmaps"].dtype == np.uint8
            assert batch["frames"].dtype == batch["offsets"].dtype == np.int32
            assert batch["frames"].shape == batch["boxes"].shape
            masks = all_masks(batch)
            assert not masks[(batch["labels"] < 0) | (batch["offsets"] < 0)].any()
            for image, boxes, labels, offsets, found in zip(
                batch["images"], batch["boxes"], batch["labels"], batch["offsets"], masks
            ):
                # Object k is in channel k, so an object is known by what its box shows.
                for box, label, offset, mask in zip(boxes, labels, offsets, found):
                    if label < 0:
                        continue
                    x1, y1, x2, y2 = np.round(box).astype(int)
                    shown = image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].reshape(-1, 3).mean(0)
                    channel = int(shown.argmax())
                    assert (offset >= 0) == (channel < 2), "the third has no segmentation"
                    without += offset < 0
                    if offset < 0:
                        continue
                    with_mask += 1
                    # Pixels, masks and boxes are rounded each in its way: by a pixel at most.
                    shape = (image[..., channel] > 127).astype(np.uint8)
                    inside, around = (f(shape, np.ones((3, 3))) for f in (cv2.erode, cv2.dilate))
                    assert inside.any() and (inside <= mask).all() and (mask <= around).all()
    assert flips and with_mask > 10 and without > 5


def test_batches_without_masks_are_the_same_and_with_masks_continue_at_any_step(masked):
    options = {"augmentation": ZOOMING, "flip_probability": 0.5, "batch_size": 2}
    plain = to_numpy(make_pipeline(masked, **options).training_batches().take(5))
    pipeline = make_pipeline(masked, masks=True, **options)
    whole = to_numpy(pipeline.training_batches().take(5))
    assert set(whole[0]) - set(plain[0]) == {"bitmaps", "frames", "offsets"}
    assert_equal_batches(plain, whole)
    assert_equal_batches(whole[3:], to_numpy(pipeline.training_batches(3).take(2)))


def test_broken_masks_are_named_once_and_none_at_all_is_an_error(masked, dataset, caplog):
    config = Config()
    broken = masked.images[1]
    outside = [[0, 0, 2, 0, 2, 2]]
    broken = dataclasses.replace(broken, segmentations=([[1, 2, 3, 4]], outside, None))
    other_size = dataclasses.replace(
        masked.images[2], segmentations=({"size": [5, 5], "counts": [25]}, None, None)
    )
    damaged = dataclasses.replace(masked, images=(masked.images[0], broken, other_size))
    with caplog.at_level(logging.WARNING):
        pipeline = training_pipeline(damaged, config, masks=True)
    assert [len(record.message.split(" x ")) for record in caplog.records] == [5]
    assert "7 of 9 objects are trained without a mask, their boxes are" in caplog.text
    for fault in (MISSING, FEW_POINTS, OUTSIDE_BOX, OTHER_SIZE):
        assert fault in caplog.text
    assert pipeline.masks and pipeline.dataset.images[1].segmentations == (None,) * 3
    assert len(pipeline.dataset.images[1].boxes) == 3
    with pytest.raises(DatasetError, match=r"no object has one.*segmentation missing"):
        training_pipeline(dataset, config, masks=True)
    config.data.source, config.data.directory = "demo", "digits"
    with pytest.raises(DatasetError, match=r"earlier version: remove data\.directory"):
        training_pipeline(dataset, config, masks=True)
