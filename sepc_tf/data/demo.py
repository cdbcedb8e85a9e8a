"""A detection data set made on the fly: real handwritten digits at sizes that differ up to 17x.

The digits are the 8x8 scans bundled with scikit-learn (`sklearn.datasets.load_digits`, the test
part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, CC BY 4.0), so nothing is downloaded. Each is drawn between 14 and 240 px on a
procedural texture. Small ones are matched by RetinaNet anchors of P3 only, the largest (from about
185 px) also by those of P6, which makes the set a test of how a detection head deals with scale.

Digits must not be mirrored: train on this set without flips.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sepc_tf.data.segmentations import encode_mask
from sepc_tf.files import read_json, write_json, writing
from sepc_tf.optional import import_package
from sepc_tf.progress import track

IMAGE_SIZE = 256
SMALLEST, LARGEST = 14.0, 240.0  # side of the square with the box's area, pixels
MAX_OBJECTS = 5
EMPTY_IMAGES = 0.05  # share of images without objects
TRAIN_DIGITS = (
    1440  # of 1797; the file keeps a writer's digits together, so the split is contiguous
)
MARKER = "demo_dataset.json"  # written last: a directory with it is complete
FORMAT_VERSION = 1
CATEGORY_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKED = 0.3  # coverage above which a pixel is part of a digit
_GLYPH_SIDE = 160
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def make_demo_dataset(
    directory: str | Path, train_images: int = 1000, val_images: int = 200, seed: int = 0
) -> Path:
    """Writes the demo data set in COCO layout, or finds the one already there.

    The layout is `annotations/instances_{train,val}.json`, `train/*.jpg`, `val/*.jpg`. Images are
    256 x 256 RGB; each holds 0 to 5 digits of 10 categories whose boxes are tight around the ink,
    with log-uniform sizes (side of the square of the box's area, 14 to 240 px). The segmentation of
    a digit is its ink, as RLE, without what a digit drawn later covers. Train and val draw from
    disjoint scans. The same arguments and library versions give the same bytes.

    Sets made by version 0.1 have no segmentations and are otherwise the same.

    The directory appears whole or not at all: it is written beside its place and renamed.

    Args:
        directory: where it goes; its parent is made when missing.
        train_images: number of training images.
        val_images: number of validation images.
        seed: of everything random.

    Returns:
        `directory` as a `pathlib.Path`.

    Raises:
        ValueError: a count is negative.
        FileExistsError: `directory` holds something else, or a demo set made with other arguments.

    Example:
        >>> root = make_demo_dataset("digits", train_images=4, val_images=2)
        >>> dataset = CocoDataset.load(root / "annotations" / "instances_val.json", root / "val")
        >>> len(dataset)
        2
    """
    for name, count in (("train_images", train_images), ("val_images", val_images)):
        if count < 0:
            raise ValueError(f"{name} must be >= 0, got {count}")
    directory = Path(directory)
    settings = {
        "format_version": FORMAT_VERSION,
        "train_images": train_images,
        "val_images": val_images,
        "seed": seed,
    }
    if _is_complete(directory, settings):
        return directory
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        partial = Path(tempfile.mkdtemp(dir=directory.parent, prefix=_partial_prefix(directory)))
    try:
        with writing(directory):
            for split, count in (("train", train_images), ("val", val_images)):
                _write_split(partial, split, count, seed)
            write_json(partial / MARKER, settings, indent=1)
        partial.chmod(0o755)  # mkdtemp makes it private
        _move_into_place(partial, directory, settings)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


# Files ------------------------------------------------------------------------------------------


def _is_complete(directory, settings):
    """True for a whole demo set, False for none or a damaged one, an error for anything else."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    marker = directory / MARKER
    if not marker.is_file():
        raise FileExistsError(
            f"{directory} exists and is not a demo data set (it has no {MARKER}): name another "
            "directory or remove it"
        )
    try:
        found = read_json(marker)
    except ValueError as error:
        raise FileExistsError(f"{marker} is damaged ({error}); remove {directory}") from error
    if found != settings:
        raise FileExistsError(
            f"{directory} holds a demo data set made with {found}, asked for {settings}: name "
            "another directory or remove it"
        )
    return all(
        (directory / "annotations" / f"instances_{split}.json").is_file()
        and len(list((directory / split).glob("*.jpg"))) == settings[f"{split}_images"]
        for split in ("train", "val")
    )


def _partial_prefix(directory, pid=None):
    return f".{directory.name}.incomplete-{os.getpid() if pid is None else pid}-"


def _remove_leftovers(directory):
    """Removes what a killed process left half written (its process id is in the name)."""
    for path in directory.parent.glob(f".{directory.name}.incomplete-*"):
        pid = path.name.split(".incomplete-")[1].split("-")[0]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _move_into_place(partial, directory, settings):
    if directory.is_dir() and not _is_complete(directory, settings):
        shutil.rmtree(directory)  # empty, or our own with files missing
    try:
        partial.rename(directory)
    except OSError:
        # Another process was faster, which is as good if what it made is whole.
        if not _is_complete(directory, settings):
            raise


def _write_split(root, split, count, seed):
    digits = import_package("sklearn.datasets", "scikit-learn", "the demo data set").load_digits()
    scans, classes = digits.images, digits.target
    part = slice(None, TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    scans, classes = scans[part], classes[part]
    (root / split).mkdir()
    (root / "annotations").mkdir(exist_ok=True)

    rng = np.random.default_rng([seed, 0 if split == "train" else 1])
    images, annotations = [], []
    queue = []
    for index in track(range(count), description=f"drawing {split} images"):
        wanted = 0 if rng.random() < EMPTY_IMAGES else int(rng.integers(1, MAX_OBJECTS + 1))
        while len(queue) < wanted:
            queue.append(_random_object(rng, scans))
        # What finds no place waits for the next image instead of being dropped or shrunk: the
        # distribution of sizes stays exactly the one drawn.
        placed, waiting = _place(rng, queue[:wanted])
        queue = waiting + queue[wanted:]
        pixels, boxes, masks = _draw(rng, placed, scans)

        image_id, file_name = index + 1, f"{index + 1:06d}.jpg"
        Image.fromarray(pixels).save(root / split / file_name, quality=92)
        images.append(
            {"id": image_id, "file_name": file_name, "width": IMAGE_SIZE, "height": IMAGE_SIZE}
        )
        for item, (x, y, width, height), mask in zip(placed, boxes, masks):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(classes[item.scan]) + 1,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": encode_mask(mask),
                }
            )
    content = {
        "info": {"description": f"SEPC-TF demo digits, {split}, seed {seed}"},
        "licenses": [{"id": 1, "name": "CC BY 4.0", "url": "https://doi.org/10.24432/C50P49"}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number + 1, "name": name, "supercategory": "digit"}
            for number, name in enumerate(CATEGORY_NAMES)
        ],
    }
    path = root / "annotations" / f"instances_{split}.json"
    write_json(path, content, indent=None)


# Pictures ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Object:
    """One digit to draw: which scan, its size in pixels, and once placed its top-left corner."""

    scan: int
    width: int
    height: int
    x: int = -1
    y: int = -1


def _random_object(rng, scans):
    scan = int(rng.integers(len(scans)))
    size = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))
    height, width = _ink(scans[scan]).shape
    aspect = width / height * np.exp(rng.uniform(-0.2, 0.2))
    # Digits that nearly fill the image have to be nearly square.
    height = np.clip(size / np.sqrt(aspect), 8.0, IMAGE_SIZE - 4.0)
    width = np.clip(size * size / height, 8.0, IMAGE_SIZE - 4.0)
    return _Object(scan, round(width), round(height))


def _place(rng, objects):
    """Random corners, largest object first, such that at most 5% of either of a pair is shared."""
    placed, waiting = [], []
    for item in sorted(objects, key=lambda item: -item.width * item.height):
        for _ in range(60):
            x = int(rng.integers(0, IMAGE_SIZE - item.width + 1))
            y = int(rng.integers(0, IMAGE_SIZE - item.height + 1))
            candidate = _Object(item.scan, item.width, item.height, x, y)
            if all(_shared(candidate, other) <= 0.05 for other in placed):
                placed.append(candidate)
                break
        else:
            waiting.append(item)
    return placed, waiting


def _shared(a, b):
    """Intersection of two boxes over the area of the smaller one (>= their IoU)."""
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    smaller = min(a.width * a.height, b.width * b.height)
    return max(width, 0) * max(height, 0) / smaller


def _draw(rng, objects, scans):
    """The picture as uint8 `[256, 256, 3]`; of each digit the box (x, y, width, height) of its ink,
    and a bool `[256, 256]` mask of what is to be seen of it."""
    canvas = _texture(rng)
    boxes, masks = [], []
    for item in objects:
        ink = _glyph(scans[item.scan], item.width, item.height)
        rows, columns = (np.flatnonzero(ink.max(axis) > INKED) for axis in (1, 0))
        boxes.append(
            (
                item.x + int(columns[0]),
                item.y + int(rows[0]),
                int(columns[-1] - columns[0] + 1),
                int(rows[-1] - rows[0] + 1),
            )
        )
        place = np.s_[item.y : item.y + item.height, item.x : item.x + item.width]
        mask = np.zeros(canvas.shape[:2], bool)
        mask[place] = ink > INKED
        masks = [*(earlier & ~mask for earlier in masks), mask]
        region = canvas[place]
        colour = _ink_colour(rng, float((region @ _LUMINANCE).mean()))
        region += ink[..., None] * (colour - region)
    canvas += rng.normal(0.0, rng.uniform(0.0, 5.0), canvas.shape[:2])[..., None]
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8), boxes, masks


def _texture(rng):
    """Noise of several octaves in two colours, float32 `[256, 256, 3]`."""
    pattern = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    roughness = rng.uniform(0.35, 0.75)
    for octave, cells in enumerate((2, 4, 8, 16, 32, 64)):
        grid = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        octave_map = grid.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        pattern += np.asarray(octave_map) * np.float32(roughness**octave)
    pattern /= np.abs(pattern).max()
    middle = rng.uniform(45, 210, 3)
    swing = rng.uniform(-55, 55, 3)
    return (middle + pattern[..., None] * swing).astype(np.float32)


def _ink_colour(rng, luminance):
    """A random colour at least 95 grey levels from the luminance of what it is drawn on."""
    for _ in range(50):
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if abs(float(colour @ _LUMINANCE) - luminance) >= 95:
            return colour
    return np.full(3, 0.0 if luminance > 127 else 255.0, np.float32)


def _glyph(scan, width, height):
    """Ink coverage in 0..1 of an 8x8 scan, float32 `[height, width]`."""
    ink = Image.fromarray(_ink(scan))
    return np.asarray(ink.resize((width, height), Image.Resampling.BILINEAR))


def _ink(scan):
    """An 8x8 scan with values 0..16 as a large smooth picture cut tight around the ink."""
    padded = Image.fromarray(np.pad(scan, 1).astype(np.float32) / 16.0)
    smooth = np.asarray(padded.resize((_GLYPH_SIDE, _GLYPH_SIDE), Image.Resampling.BICUBIC))
    ink = np.clip((smooth - 0.48) / 0.15 + 0.5, 0.0, 1.0)
    rows, columns = np.flatnonzero(ink.max(1) > 0.5), np.flatnonzero(ink.max(0) > 0.5)
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
