"""Augmentation against numpy, and as a function of its seed alone."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sepc_tf.data.augment import Draw, augment, change_colours, crop, draw, expand
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.config import AugmentationConfig, DataConfig
from sepc_tf.data.pipeline import BatchPipeline

pytestmark = pytest.mark.same_on_both_stacks

EVERYTHING = AugmentationConfig(
    brightness=0.3,
    contrast=0.3,
    saturation=0.4,
    hue=0.1,
    blur_probability=0.5,
    blur_sigma=[0.5, 1.5],
    noise_std=8.0,
    crop_probability=0.5,
    crop_scale=[0.6, 0.9],
    expand_probability=0.5,
    expand_ratio=[1.2, 2.0],
)
COLOURS = np.array(  # one colour a box, told apart by any channel
    [[250, 10, 20], [20, 240, 30], [30, 40, 230]], np.uint8
)


def photo(seed=0, shape=(50, 70)):
    """Smooth colours, neither black nor white anywhere."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 190, (5, 7, 3), np.uint8))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))


def picture_of(boxes, shape):
    """Boxes of whole pixels, each filled with its colour, on black."""
    pixels = np.zeros((*shape, 3), np.uint8)
    for (x1, y1, x2, y2), colour in zip(np.int64(boxes), COLOURS):
        pixels[y1:y2, x1:x2] = colour
    return pixels


def extents(pixels, label):
    """The box of the pixels of a label's colour, counted."""
    rows, columns = np.nonzero((pixels == COLOURS[label]).all(axis=2))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def grey(pixels):
    return pixels @ [0.299, 0.587, 0.114]


def test_everything_is_off_by_default():
    assert DataConfig().augmentation == AugmentationConfig()
    rng = np.random.default_rng(0)
    assert all(draw(AugmentationConfig(), rng) == Draw() for _ in range(50))
    pixels, boxes = photo(), np.float32([[1, 2, 30, 40]])
    result = augment(pixels, boxes, AugmentationConfig(), 5)
    for before, after in zip((pixels, boxes, [0], [0, 0]), result, strict=True):
        np.testing.assert_array_equal(before, after)


def test_draws_lie_in_their_ranges_and_fill_them():
    rng = np.random.default_rng(0)
    draws = [dataclasses.asdict(draw(EVERYTHING, rng)) for _ in range(2000)]
    for name, low, high, off in (
        ("brightness", 0.7, 1.3, None),
        ("contrast", 0.7, 1.3, None),
        ("saturation", 0.6, 1.4, None),
        ("hue", -0.1, 0.1, None),
        ("noise", 0.0, 8.0, None),
        ("blur", 0.5, 1.5, 0.0),
        ("crop", 0.6, 0.9, 1.0),
        ("expand", 1.2, 2.0, 1.0),
    ):
        values = np.array([drawn[name] for drawn in draws])
        applied = values[values != off]
        assert low <= applied.min() and applied.max() <= high, name
        assert abs(applied.mean() - (low + high) / 2) < 0.05 * (high - low), name
        assert applied.max() - applied.min() > 0.98 * (high - low), name
        assert off is None or abs(len(applied) / 2000 - 0.5) < 0.05, name


def test_a_setting_does_not_change_what_is_drawn_for_another():
    for field in dataclasses.fields(AugmentationConfig):
        alone = dataclasses.replace(
            AugmentationConfig(), **{field.name: getattr(EVERYTHING, field.name)}
        )
        drawn = draw(alone, np.random.default_rng(4))
        together = draw(EVERYTHING, np.random.default_rng(4))
        for name, value in dataclasses.asdict(drawn).items():
            assert value in (getattr(together, name), getattr(Draw(), name)) or field.name in (
                "blur_sigma",
                "crop_scale",
                "expand_ratio",
                "blur_probability",
                "crop_probability",
                "expand_probability",
            )


def test_colours_equal_numpy():
    pixels = photo()
    values = pixels.astype(float)
    mean = round(grey(values).mean())
    for changes, expected in (
        ({"brightness": 1.2}, 1.2 * values),
        ({"brightness": 0.5}, 0.5 * values),
        ({"contrast": 1.3}, mean + 1.3 * (values - mean)),
        ({"saturation": 0.4}, grey(values)[..., None] * 0.6 + 0.4 * values),
        ({"saturation": 0.0}, np.repeat(grey(values)[..., None], 3, axis=2)),
    ):
        got = change_colours(pixels, Draw(**changes)).astype(float)
        assert np.abs(got - np.clip(expected, 0, 255)).max() <= 1.5, changes  # whole grey levels
        assert np.abs(got - values).max() > 20, "it does something"


def test_hue_turns_by_a_third_from_red_to_green():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[..., 0] = 200
    turned = change_colours(pixels, Draw(hue=1 / 3)).astype(int)
    np.testing.assert_allclose(turned[0, 0], [0, 200, 0], atol=4)
    back = change_colours(np.uint8(turned), Draw(hue=-1 / 3)).astype(int)
    np.testing.assert_allclose(back[0, 0], [200, 0, 0], atol=4)


def test_blur_is_a_gaussian_of_the_standard_deviation():
    """A bright point becomes a spot whose second moment is the variance."""
    pixels = np.zeros((61, 61, 3), np.uint8)
    pixels[26:35, 26:35] = 255  # 9 x 9, variance (81 - 1) / 12
    settings = AugmentationConfig(blur_probability=1.0, blur_sigma=[3.0, 3.0])
    blurred = augment(pixels, np.zeros((0, 4), np.float32), settings, 0)[0]
    weights = blurred[..., 0].astype(float)
    offsets = np.arange(61) - 30
    for axis in (0, 1):
        profile = weights.sum(axis) / weights.sum()
        assert (profile * offsets**2).sum() - 80 / 12 == pytest.approx(9, rel=0.1)
    assert weights.sum() == pytest.approx(81 * 255, rel=0.02), "no light is lost"


def test_noise_has_the_standard_deviation_drawn():
    pixels = np.full((200, 200, 3), 120, np.uint8)
    settings = AugmentationConfig(noise_std=10.0)
    for seed in range(3):
        noisy = augment(pixels, np.zeros((0, 4)), settings, seed)[0]
        drawn = draw(settings, np.random.default_rng(seed))
        difference = noisy.astype(float) - 120
        assert difference.std() == pytest.approx(np.sqrt(drawn.noise**2 + 1 / 12), rel=0.02)
        assert abs(difference.mean()) < 0.1


@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_the_pixels_into_a_window(seed):
    shape = (60, 80)
    boxes = np.float32([[5, 6, 25, 26], [40, 10, 70, 30], [20, 40, 50, 58]])
    pixels = picture_of(boxes, shape)
    window, moved, kept, shift = crop(pixels, boxes, 0.6, 0.31, np.random.default_rng(seed))
    assert window.shape == (36, 48, 3), "the aspect ratio stays"
    assert len(moved) == len(kept) >= 1
    for label, area in enumerate(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)):
        visible = (window == COLOURS[label]).all(axis=2).sum() / area
        assert (label in kept) == (visible >= 0.31)
    for box, label in zip(moved, kept):
        np.testing.assert_array_equal(box, extents(window, label))
    left, top = -shift
    np.testing.assert_array_equal(window, pixels[top : top + 36, left : left + 48])


@pytest.mark.parametrize("seed", range(4))
def test_boxes_follow_the_pixels_onto_a_canvas(seed):
    boxes = np.float32([[5, 6, 25, 26], [40, 10, 70, 30], [0, 40, 50, 60]])
    pixels = picture_of(boxes, (60, 80))
    fill = (9, 99, 199)
    canvas, moved, (left, top) = expand(pixels, boxes, 1.7, fill, np.random.default_rng(seed))
    assert canvas.shape == (102, 136, 3)
    for label, box in enumerate(moved):
        np.testing.assert_array_equal(box, extents(canvas, label))
    np.testing.assert_array_equal(canvas[top : top + 60, left : left + 80], pixels)
    outside = (canvas == fill).all(axis=2).sum()
    assert outside == 102 * 136 - 60 * 80


def test_an_image_whose_objects_would_all_be_lost_stays_whole():
    boxes = np.float32([[0, 0, 60, 50]])
    pixels = photo(shape=(50, 60))
    result = crop(pixels, boxes, 0.3, 0.5, np.random.default_rng(0))
    for before, after in zip((pixels, boxes, [0], [0, 0]), result, strict=True):
        np.testing.assert_array_equal(before, after)
    empty = np.zeros((0, 4), np.float32)
    window = crop(pixels, empty, 0.3, 0.5, np.random.default_rng(0))[0]
    assert window.shape == (15, 18, 3), "without objects there are none to lose"


# In the pipeline -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    for index in range(12):
        shape = (60, 80 + index) if index % 3 else (80, 60)
        Image.fromarray(photo(index, shape)).save(root / f"{index}.png")
        content["images"].append(
            {"id": index, "file_name": f"{index}.png", "width": shape[1], "height": shape[0]}
        )
        for bbox in ([4, 5, 30, 20], [20.5, 10.25, 33, 41])[: 1 + index % 2]:
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {"id": number, "image_id": index, "category_id": 1, "bbox": bbox}
            )
    return CocoDataset.from_content(content, lambda name: (root / name).read_bytes, "photos")


def make_pipeline(dataset, augmentation=EVERYTHING, **options):
    options = {"batch_size": 4, "short_side": 64, "long_side": 96, "seed": 5, **options}
    return BatchPipeline(
        dataset, training=True, flip_probability=0.5, augmentation=augmentation, **options
    )


def to_numpy(batches):
    return [{name: value.numpy() for name, value in batch.items()} for batch in batches]


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_equal_seeds_equal_batches_however_many_threads(dataset):
    first = to_numpy(make_pipeline(dataset, num_parallel=1).for_epoch(2))
    assert_equal_batches(first, to_numpy(make_pipeline(dataset, num_parallel=8).for_epoch(2)))
    plan, other = (make_pipeline(dataset, seed=seed).plan(2) for seed in (5, 6))
    assert (plan.seeds != other.seeds).all()
    assert (plan.seeds != make_pipeline(dataset).plan(3).seeds).all()
    assert len(np.unique(plan.seeds)) == plan.seeds.size and plan.seeds.min() >= 0


@pytest.mark.parametrize("start", [1, 4, 9])
def test_training_continues_at_any_step(dataset, start):
    whole = to_numpy(make_pipeline(dataset).training_batches().take(start + 3))
    continued = to_numpy(make_pipeline(dataset).training_batches(start).take(3))
    assert_equal_batches(continued, whole[start:])


def test_the_order_and_the_flips_are_those_without_augmentation(dataset):
    plan, plain = make_pipeline(dataset).plan(1), make_pipeline(dataset, None).plan(1)
    for name in ("indices", "short_sides", "flips"):
        np.testing.assert_array_equal(getattr(plan, name), getattr(plain, name))
    off = to_numpy(make_pipeline(dataset, AugmentationConfig()).for_epoch(1))
    assert_equal_batches(off, to_numpy(make_pipeline(dataset, None).for_epoch(1)))
    on = to_numpy(make_pipeline(dataset).for_epoch(1))
    assert all(
        a["images"].shape != b["images"].shape or (a["images"] != b["images"]).any()
        for a, b in zip(on, off)
    )


def test_evaluation_is_never_augmented(dataset):
    options = {"batch_size": 4, "training": False, "short_side": 64, "long_side": 96}
    assert_equal_batches(
        to_numpy(BatchPipeline(dataset, augmentation=EVERYTHING, **options).for_epoch()),
        to_numpy(BatchPipeline(dataset, **options).for_epoch()),
    )


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
def test_zoomed_boxes_are_those_of_the_same_window_in_a_file(tmp_path, dataset, convention):
    """The window and the canvas saved as files, annotated and read without augmentation."""
    settings = AugmentationConfig(
        crop_probability=0.5, crop_scale=[0.5, 0.9], expand_probability=0.5, expand_ratio=[1.1, 2.0]
    )
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "convention": convention, "batch_size": 1}
    pipeline = make_pipeline(dataset, settings, **plain)
    plan = pipeline.plan(0)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    for number, (index, seed) in enumerate(zip(plan.indices.ravel(), plan.seeds.ravel())):
        record = dataset.images[index]
        pixels, boxes, _, _ = augment(record.read(), record.boxes, settings, seed)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        height, width = pixels.shape[:2]
        content["images"].append(
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        )
        for x1, y1, x2, y2 in boxes.tolist():
            annotation = {"id": len(content["annotations"]) + 1, "image_id": number}
            annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            content["annotations"].append({**annotation, "category_id": 1})
    saved = CocoDataset.from_content(content, lambda name: (tmp_path / name).read_bytes, "saved")
    for number, batch in enumerate(to_numpy(pipeline.for_epoch(0))):
        again = dataclasses.replace(saved, images=saved.images[number : number + 1])
        flip = float(plan.flips[number, 0])
        [expected] = to_numpy(
            BatchPipeline(
                again, training=True, short_side=64, long_side=96, flip_probability=flip, **plain
            ).for_epoch(0)
        )
        for name in ("images", "image_sizes", "original_sizes", "labels"):
            np.testing.assert_array_equal(batch[name], expected[name])
        np.testing.assert_allclose(batch["boxes"], expected["boxes"], atol=1e-4)
    originals = [dataset.images[index] for index in plan.indices.ravel()]
    changed = [image.width != original.width for image, original in zip(saved.images, originals)]
    assert 3 < sum(changed) < len(changed)


def test_batches_keep_the_contract(dataset):
    pipeline = make_pipeline(dataset, crop_heavily(), batch_size=3)
    for batch in pipeline.training_batches().take(12):
        boxes, labels = batch["boxes"].numpy(), batch["labels"].numpy()
        assert ((boxes == -1).all(-1) == (labels == -1)).all()
        assert (labels >= 0).any(1).all(), "no image lost its last object"
        limits = np.concatenate([batch["image_sizes"].numpy()[:, ::-1]] * 2, axis=1)[:, None]
        real = labels >= 0
        assert (boxes <= limits)[real].all() and (boxes[real] >= 0).all()
        assert (boxes[real][:, 2:] > boxes[real][:, :2]).all()
        assert batch["images"].dtype == tf.uint8


def crop_heavily():
    return AugmentationConfig(crop_probability=1.0, crop_scale=[0.3, 0.5])
