"""Reading image files of every kind a data set contains into one form: uint8 RGB.

A picture of more than `MAX_PIXELS` is refused from its header, before it fills the memory; the
environment variable `SEPC_TF_MAX_PIXELS` names another limit.
"""

import contextlib
import io
import os
import threading

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sepc_tf.errors import ConfigError, UnreadableImageError

ORIENTATION = 0x0112  # EXIF tag
MAX_PIXELS = 500_000_000  # 1.5 GB as RGB; a picture of 20 000 x 20 000 is below
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def read_image(path):
    """Reads an image file as RGB, the way it is meant to be looked at.

    The EXIF orientation is applied. Grey, palette, CMYK and 16-bit images become 8-bit RGB,
    transparency is dropped, of an animation the first frame is taken. JPEG, PNG, BMP, WebP, GIF and
    TIFF are among the formats; decoding is Pillow's, the same libjpeg arithmetic as OpenCV's.

    Args:
        path: of the file.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        UnreadableImageError: with the path and the reason, which may be its size.

    Example:
        >>> read_image("image.jpg").shape
        (256, 256, 3)
    """
    try:
        with open(path, "rb") as file:
            return decode_image(file.read(), name=path)
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror or error}") from error


def decode_image(contents, name="image"):
    """`read_image` for the bytes of a file; `name` stands for the path in errors."""
    try:
        with _opened(io.BytesIO(contents)) as image:
            image.load()
            upright = image
            if image.getexif().get(ORIENTATION, 1) != 1:  # else a copy for nothing
                upright = ImageOps.exif_transpose(image)
            pixels = _to_rgb(upright)
    except ConfigError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{name}: not an image of a known format") from error
    # What a damaged file raises depends on the format: OSError when truncated, SyntaxError from
    # the PNG reader, ValueError, struct.error and others from broken headers.
    except Exception as error:
        raise UnreadableImageError(f"{name}: {error}") from error
    return pixels


def image_size(contents):
    """(height, width) after EXIF rotation, from the header alone; of a file, or of its bytes."""
    with _opened(io.BytesIO(contents) if isinstance(contents, bytes) else contents) as image:
        width, height = image.size
        rotated = image.getexif().get(ORIENTATION, 1) >= 5  # 5 to 8 swap the axes
    return (width, height) if rotated else (height, width)


def deep_peak(path):
    """The largest value of a grey image of 16 or 32 bits; None for an image of other kinds."""
    with _opened(path) as image:
        return int(np.asarray(image).max(initial=0)) if image.mode.startswith("I") else None


_pillows_limit = threading.Lock()


@contextlib.contextmanager
def _opened(file):
    """The image whose header has been read, within our limit instead of Pillow's."""
    with _pillows_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        limit = os.environ.get("SEPC_TF_MAX_PIXELS", str(MAX_PIXELS))
        if not limit.isdecimal():
            raise ConfigError(f"SEPC_TF_MAX_PIXELS: expected a number of pixels, got {limit!r}")
        if image.width * image.height > int(limit):
            raise UnreadableImageError(
                f"its {image.width} x {image.height} pixels are more than the limit of {limit}; if "
                "it is meant to be so large, set the environment variable SEPC_TF_MAX_PIXELS"
            )
        yield image


def _to_rgb(image):
    if image.mode.startswith("I"):  # 16 or 32 bits per pixel: Pillow would clip them to 255
        grey = np.asarray(image).astype(np.int64)
        grey = np.clip(grey >> 8 if grey.max(initial=0) > 255 else grey, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
