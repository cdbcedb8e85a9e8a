"""Encoded images to pixels inside the graph, with the values that `images.read_image` gives."""

import tensorflow as tf

ORIENTATION = 0x0112  # EXIF tag
HEADER_BYTES = 2**17  # EXIF stands in a segment of at most 64 KiB at the start of a JPEG


def decode_upright(contents: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG, PNG or GIF as RGB, the way it is meant to be looked at.

    JPEG is decoded with libjpeg's accurate integer DCT, as Pillow and OpenCV do, not with the fast
    one that TensorFlow takes by default (up to 23 grey levels off on photographs). The EXIF
    orientation of a JPEG is applied; what other formats or XMP say of it is not read.

    Args:
        contents: scalar string, the bytes of the file.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are no such image, or an animation.

    Example:
        >>> decode_upright(tf.io.read_file("image.jpg")).shape
        TensorShape([256, 256, 3])
    """
    pixels = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")
    orientation = _exif_orientation(contents)

    def is_one_of(values):
        return tf.reduce_any(orientation == values)

    # The eight orientations are the mirrorings of the image and of the transposed image.
    pixels = tf.cond(
        is_one_of([5, 6, 7, 8]), lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels
    )
    pixels = tf.cond(is_one_of([2, 3, 6, 7]), lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return tf.cond(is_one_of([3, 4, 7, 8]), lambda: tf.reverse(pixels, [0]), lambda: pixels)


def _exif_orientation(contents):
    """Scalar int64: the orientation in a JPEG's first EXIF directory, 1 where there is none."""
    header = tf.strings.substr(contents, 0, HEADER_BYTES)
    parts = tf.strings.split(header, b"Exif\0\0", maxsplit=1)
    is_there = (tf.strings.substr(header, 0, 2) == b"\xff\xd8") & (tf.size(parts) == 2)
    # A TIFF header: byte order, 42, offset of the directory; the directory: number of entries,
    # entries of 12 bytes (tag, type, count, value). The padding stands in for what is cut off.
    padding = 16
    data = tf.io.decode_raw(tf.where(is_there, parts[-1], ""), tf.uint8)
    data = tf.pad(data, [[0, padding]])
    little_endian = data[0] == ord("I")

    def number(data):
        data = tf.where(little_endian, data, tf.reverse(data, [-1]))
        return tf.reduce_sum(tf.cast(data, tf.int64) * [256**i for i in range(data.shape[-1])], -1)

    end = tf.size(data, tf.int64) - padding
    start = tf.minimum(number(tf.ensure_shape(data[4:8], [4])), end)
    first = start + 2
    count = tf.minimum(number(tf.ensure_shape(data[start:first], [2])), (end - start) // 12)
    entries = tf.reshape(data[first : first + 12 * count], [-1, 12])
    is_orientation = number(entries[:, :2]) == ORIENTATION
    values = tf.boolean_mask(number(entries[:, 8:10]), is_orientation)
    return tf.concat([values, [1]], 0)[0]
