import io

import numpy as np
import pytest
from PIL import Image

from sepc_tf.data.images import (
    ORIENTATION,
    UnreadableImageError,
    decode_image,
    image_size,
    read_image,
)

pytestmark = pytest.mark.same_on_both_stacks

# Smooth, so that lossy formats keep it; corners of four colours, so that turns are seen.
ROWS, COLUMNS = np.mgrid[0:24, 0:40]
PICTURE = np.stack([ROWS * 10, COLUMNS * 6, 255 - COLUMNS * 3], -1).astype(np.uint8)


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "format, tolerance",
    [("JPEG", 12), ("PNG", 0), ("BMP", 0), ("WEBP", 25), ("TIFF", 0)],
)
def test_formats(format, tolerance):
    pixels = decode_image(encode(Image.fromarray(PICTURE), format))
    assert pixels.dtype == np.uint8 and pixels.shape == PICTURE.shape
    assert np.abs(pixels.astype(int) - PICTURE).max() <= tolerance


def test_grey_palette_transparent_and_16_bit_become_rgb():
    grey = PICTURE[..., 0]
    expected = np.repeat(grey[..., None], 3, 2)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(grey), "PNG")), expected)
    assert decode_image(encode(Image.fromarray(grey), "JPEG")).shape == (24, 40, 3)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode_image(encode(deep, "PNG")), expected)
    transparent = Image.fromarray(np.dstack([PICTURE, np.full((24, 40), 7, np.uint8)]))
    np.testing.assert_array_equal(decode_image(encode(transparent, "PNG")), PICTURE)
    palette = Image.fromarray(PICTURE).quantize(16)
    np.testing.assert_array_equal(
        decode_image(encode(palette, "PNG")), np.asarray(palette.convert("RGB"))
    )


def test_cmyk_jpeg_has_the_colours_of_the_picture():
    cmyk = Image.fromarray(PICTURE).convert("CMYK")
    pixels = decode_image(encode(cmyk, "JPEG", quality=95))
    assert pixels.shape == PICTURE.shape
    assert np.abs(pixels.astype(int) - PICTURE).mean() < 6


@pytest.mark.parametrize(
    "orientation, turn",
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_exif_orientation_is_applied(orientation, turn):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    contents = encode(Image.fromarray(PICTURE), "JPEG", quality=95, exif=exif)
    expected = turn(decode_image(encode(Image.fromarray(PICTURE), "JPEG", quality=95)))
    np.testing.assert_array_equal(decode_image(contents), expected)
    assert image_size(contents) == expected.shape[:2]


def test_unreadable_files_are_named(tmp_path):
    whole = encode(Image.fromarray(PICTURE), "JPEG")
    for name, contents, reason in (
        ("cut.jpg", whole[: len(whole) // 2], "truncated"),
        ("cut.png", encode(Image.fromarray(PICTURE), "PNG")[:60], ""),
        ("text.jpg", b"hello", "not an image"),
        ("empty.jpg", b"", "not an image"),
    ):
        (tmp_path / name).write_bytes(contents)
        with pytest.raises(UnreadableImageError, match=f"(?i){name}: .*{reason}"):
            read_image(tmp_path / name)
    with pytest.raises(UnreadableImageError, match=r"none\.jpg: No such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImageError, match="directory"):
        read_image(tmp_path)
