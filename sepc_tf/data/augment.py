"""Random changes of training images: colour, blur, noise, zooming in and out.

Pillow does the work on the pixels. It is here already, decodes the images, is the same on both
stacks, and runs in the thread that has just read the image, so that nothing depends on the order of
threads: what happens to an image is a function of its pixels and of one seed.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from sepc_tf.data.config import AugmentationConfig
from sepc_tf.errors import ConfigError

# Places that are tried for a window before an image of which no object would be left stays whole.
WINDOW_TRIES = 10
# A box with less left of it is no object any more, as when annotations are read.
SMALLEST_SIDE = 1.0


@dataclasses.dataclass(frozen=True)
class Draw:
    """What happens to one image; with the default of a value nothing does.

    Attributes:
        crop: sides of the window / sides of the image.
        expand: sides of the canvas / sides of the image.
        brightness, contrast, saturation: factors.
        hue: turn on the colour circle, in whole turns.
        blur: standard deviation of the Gaussian, pixels.
        noise: standard deviation, grey levels.
    """

    crop: float = 1.0
    expand: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    blur: float = 0.0
    noise: float = 0.0


def check_augmentation(settings: AugmentationConfig) -> None:
    """Checks what the limits of single settings do not.

    Raises:
        ConfigError: a range is not (low, high).
    """
    for name in ("blur_sigma", "crop_scale", "expand_ratio"):
        value = getattr(settings, name)
        if len(value) != 2 or value[0] > value[1]:
            raise ConfigError(f"data.augmentation.{name}: expected [low, high], got {value!r}")


def draw(settings: AugmentationConfig, rng: np.random.Generator) -> Draw:
    """Draws what happens to one image.

    Args:
        settings: `sepc_tf.data.config.AugmentationConfig`.
        rng: a fixed number of values is taken from it, so that a setting does not change what is
            drawn for another one.

    Returns:
        A `Draw`: factors uniform in `1 - setting .. 1 + setting`, the hue in `-hue .. hue`, the
        noise in `0 .. noise_std`, the others in their range with their probability.
    """
    brightness, contrast, saturation, hue = rng.uniform(-1.0, 1.0, 4).tolist()
    noise, blur, crop, expand = rng.random(4).tolist()
    blurred, cropped, expanded = rng.random(3) < (
        settings.blur_probability,
        settings.crop_probability,
        settings.expand_probability,
    )
    return Draw(
        crop=_within(settings.crop_scale, crop) if cropped else 1.0,
        expand=_within(settings.expand_ratio, expand) if expanded else 1.0,
        brightness=1.0 + settings.brightness * brightness,
        contrast=1.0 + settings.contrast * contrast,
        saturation=1.0 + settings.saturation * saturation,
        hue=settings.hue * hue,
        blur=_within(settings.blur_sigma, blur) if blurred else 0.0,
        noise=settings.noise_std * noise,
    )


def augment(
    pixels: np.ndarray,
    boxes: np.ndarray,
    settings: AugmentationConfig,
    seed: int,
    fill: tuple = (0, 0, 0),
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One image and its boxes, changed at random.

    In this order: a window of the image's own aspect ratio is cut out; brightness, contrast,
    saturation and hue change; the image is blurred; noise is added; it is put at a random place of
    a larger canvas. Windows and places are whole pixels, so boxes and masks move exactly.

    Args:
        pixels: uint8 `[H, W, 3]` RGB; not changed.
        boxes: float32 `[n, 4]` xyxy, continuous (the width is x2 - x1), within the image.
        settings: `sepc_tf.data.config.AugmentationConfig`.
        seed: not negative; the result depends on nothing else.
        fill: colour of the canvas, three grey levels.

    Returns:
        pixels and boxes of the kinds given; int64 `[m]`, which of the n objects the boxes are of:
        those of which too little is left are gone; int64 `[2]`, the x and y by which what is left
        of the image has moved.

    Example:
        >>> pixels = np.full((40, 60, 3), 128, np.uint8)
        >>> settings = AugmentationConfig(expand_probability=1.0, expand_ratio=[2.0, 2.0])
        >>> larger, boxes, kept, shift = augment(
        ...     pixels, np.float32([[5, 5, 30, 30]]), settings, seed=1)
        >>> larger.shape, kept
        ((80, 120, 3), array([0]))
        >>> bool((boxes[0, :2] - shift == [5, 5]).all())
        True
    """
    rng = np.random.default_rng(seed)
    drawn = draw(settings, rng)
    kept, shift = np.arange(len(boxes)), np.zeros(2, np.int64)
    if drawn.crop < 1:
        pixels, boxes, kept, shift = crop(pixels, boxes, drawn.crop, settings.min_visible, rng)
    pixels = change_colours(pixels, drawn)
    if drawn.blur > 0:
        # Pillow's radius is the standard deviation.
        pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(drawn.blur)))
    if drawn.noise > 0:
        noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(drawn.noise)
        pixels = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    if drawn.expand > 1:
        pixels, boxes, moved = expand(pixels, boxes, drawn.expand, fill, rng)
        shift = shift + moved
    return pixels, boxes, kept, shift


def crop(pixels, boxes, scale, min_visible, rng):
    """Cuts a window out of an image.

    An object stays, cut to the window, when the share `min_visible` of its area is inside and both
    its sides are at least `SMALLEST_SIDE` pixels long. Of `WINDOW_TRIES` places the first is taken
    that leaves an object; where none does, and there is one to lose, the image stays whole.

    Args:
        pixels, boxes: as in `augment`.
        scale: sides of the window / sides of the image, at most 1.
        min_visible: see above.
        rng: draws the places.

    Returns:
        pixels, boxes, which objects these are of, and by how much they moved, as `augment`.
    """
    height, width = pixels.shape[:2]
    rows, columns = (max(1, round(side * scale)) for side in (height, width))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for _ in range(WINDOW_TRIES):
        top, left = (int(rng.integers(0, n + 1)) for n in (height - rows, width - columns))
        moved = boxes - np.float32([left, top, left, top])
        moved = np.clip(moved, 0, np.float32([columns, rows, columns, rows]))
        sides = moved[:, 2:] - moved[:, :2]
        kept = np.prod(sides, axis=1) >= min_visible * areas
        kept &= (sides >= SMALLEST_SIDE).all(axis=1)
        if kept.any() or not len(boxes):
            window = pixels[top : top + rows, left : left + columns]
            return window, moved[kept], np.flatnonzero(kept), np.array([-left, -top])
    return pixels, boxes, np.arange(len(boxes)), np.zeros(2, np.int64)


def expand(pixels, boxes, ratio, fill, rng):
    """Puts an image on a canvas of `ratio` times its sides, at a random place.

    Args:
        pixels, boxes, fill: as in `augment`.
        ratio: at least 1.
        rng: draws the place.

    Returns:
        pixels, boxes, and by how much they moved, as `augment`.
    """
    height, width = pixels.shape[:2]
    rows, columns = round(height * ratio), round(width * ratio)
    top, left = (int(rng.integers(0, n + 1)) for n in (rows - height, columns - width))
    canvas = np.empty((rows, columns, 3), np.uint8)
    canvas[:] = np.uint8(fill)
    canvas[top : top + height, left : left + width] = pixels
    return canvas, boxes + np.float32([left, top, left, top]), np.array([left, top])


def change_colours(pixels, drawn):
    """Brightness, contrast, saturation and hue of a `Draw`.

    A factor f takes a pixel p to `b + f (p - b)`, clipped to 0..255, where b is black for the
    brightness, the image's mean grey for the contrast, and the pixel's own grey for the saturation.
    The hue turns in HSV, in steps of 1/256.

    Args:
        pixels: uint8 `[H, W, 3]` RGB.
        drawn: `Draw`.

    Returns:
        uint8 `[H, W, 3]`.
    """
    image = Image.fromarray(pixels)
    for enhance, factor in (
        (ImageEnhance.Brightness, drawn.brightness),
        (ImageEnhance.Contrast, drawn.contrast),
        (ImageEnhance.Color, drawn.saturation),
    ):
        if factor != 1:
            image = enhance(image).enhance(factor)
    turn = round(drawn.hue * 256) % 256
    if turn:
        hue, saturation, value = image.convert("HSV").split()
        hue = hue.point([(step + turn) % 256 for step in range(256)])
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return np.asarray(image)


def _within(limits, share):
    low, high = limits
    return low + (high - low) * share
