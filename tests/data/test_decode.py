"""In the graph an image has the pixels that Pillow gives, upright."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sepc_tf.data.decode import decode_upright
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.data.images import decode_image

decode = tf.function(decode_upright, input_signature=[tf.TensorSpec([], tf.string)])


def photo(height=37, width=51):
    """Smooth colours with some noise, so that every step of JPEG has something to do."""
    y, x = np.mgrid[:height, :width]
    waves = 128 + 90 * np.sin(np.stack([x / 5, y / 7, (x + y) / 9], -1))
    noise = np.random.default_rng(0).normal(0, 20, waves.shape)
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


def encoded(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation, order="<", offset=8, before=()):
    """An EXIF block with the tag among others: `before` are entries (tag, value) ahead of it."""
    entries = [(tag, 4, value) for tag, value in before] + [(0x0112, 3, orientation)]
    block = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, offset)
    block += bytes(offset - 8) + struct.pack(f"{order}H", len(entries))
    for tag, number, value in entries:
        packed = struct.pack(f"{order}HH", value, 0) if number == 3 else struct.pack("<I", value)
        block += struct.pack(f"{order}HHI", tag, number, 1) + packed
    return b"Exif\0\0" + block + bytes(4)


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "JPEG", {"subsampling": 2}),
        ("RGB", "JPEG", {"subsampling": 1, "quality": 40}),
        ("RGB", "JPEG", {"subsampling": 0, "progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("L", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "GIF", {}),
    ],
)
def test_pixels_are_those_of_pillow(mode, form, options):
    contents = encoded(photo().convert(mode), form, **options)
    np.testing.assert_array_equal(decode(contents), decode_image(contents))


def test_the_default_decoding_of_tensorflow_has_other_pixels():
    contents = encoded(photo())
    default = tf.io.decode_jpeg(contents, channels=3).numpy().astype(int)
    assert np.abs(default - decode_image(contents)).max() > 1


def test_photographs_have_the_pixels_of_pillow(coco128_dir):
    paths = sorted((coco128_dir / "train2017").glob("*.jpg"))
    assert len(paths) == 128
    for path in paths:
        contents = path.read_bytes()
        np.testing.assert_array_equal(decode(contents), decode_image(contents), err_msg=path.name)


def test_the_demo_data_have_the_pixels_of_pillow(tmp_path):
    root = make_demo_dataset(tmp_path / "demo", train_images=0, val_images=6)
    for path in sorted((root / "val").glob("*.jpg")):
        contents = path.read_bytes()
        np.testing.assert_array_equal(decode(contents), decode_image(contents), err_msg=path.name)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_every_orientation_is_applied(orientation, order):
    upright = encoded(photo())
    contents = encoded(photo(), exif=exif(orientation, order, before=[(0x0100, 5), (0x010E, 0)]))
    expected = decode_image(contents)
    np.testing.assert_array_equal(decode(contents), expected)
    if orientation in range(2, 9):
        assert not np.array_equal(expected, decode_image(upright)), "Pillow turned it"


def test_exif_that_pillow_wrote_and_after_another_segment():
    tags = Image.Exif()
    tags[0x010F] = "a maker whose name does not fit into four bytes"
    tags[0x0112] = 6
    contents = encoded(photo(), exif=tags, dpi=(300, 300), comment=b"Exif? No: a comment")
    assert b"JFIF" in contents[:20]
    np.testing.assert_array_equal(decode(contents), decode_image(contents))
    assert decode(contents).shape == (51, 37, 3)
    # A thumbnail with a turned EXIF of its own comes later and is not meant.
    inner = encoded(photo(8, 8), exif=exif(3))
    contents = encoded(photo(), exif=exif(8)[:-4] + inner)
    np.testing.assert_array_equal(decode(contents), decode_image(contents))


def test_exif_far_from_its_header_is_found_and_broken_exif_is_ignored():
    contents = encoded(photo(), exif=exif(6, offset=4000))
    np.testing.assert_array_equal(decode(contents), decode_image(contents))
    upright = decode_image(encoded(photo()))
    whole = exif(6)
    for broken in [
        *(whole[:length] for length in range(6, len(whole) - 6)),
        exif(6, offset=8)[:10] + struct.pack("<I", 2**32 - 1) + whole[14:],  # far outside
        exif(6)[:14] + struct.pack("<H", 0) + whole[16:],  # no entries
        b"Exif\0\0" + bytes(30),
    ]:
        np.testing.assert_array_equal(decode(encoded(photo(), exif=broken)), upright)


@pytest.mark.parametrize("contents", [b"", b"no image", encoded(photo())[:300]])
def test_what_is_no_image_is_an_error(contents):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(contents)
