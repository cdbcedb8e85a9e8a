"""From the pixels of a file to the input of a network.

Evaluation, prediction and export resize in float32. Training resizes bytes: an image of 800 x 1067
takes a sixth of the time, and batches are a quarter of the size; a grey level is rounded to a
whole number, as in the authors' code.
"""

import cv2
import numpy as np
import tensorflow as tf

from sepc_tf.ops.pixels import normalize


def resized_size(height, width, short_side, long_side):
    """The size an image is resized to, its aspect ratio kept.

    `scale = min(short_side / min(h, w), long_side / max(h, w))`; each side becomes
    `floor(side * scale + 0.5)`. So the short side becomes `short_side`, unless the long one would
    exceed `long_side`. The rounding is mmdetection's (`mmcv.rescale_size`), so that images have the
    published sizes.

    Args:
        height, width: scalar integers or integer tensors, pixels.
        short_side, long_side: scalar integers or integer tensors, pixels.

    Returns:
        int32 `[2]`, height and width, each at least 1.

    Example:
        >>> resized_size(480, 640, 800, 1333).numpy()
        array([ 800, 1067], dtype=int32)
    """
    size = tf.stack([height, width])
    return tf.maximum(tf.cast(tf.floor(_scaled(size, short_side, long_side) + 0.5), tf.int32), 1)


def frame_sizes(image_sizes, original_sizes, short_side, long_side, convention="modern"):
    """The size, in pixels of the original image, that box arithmetic takes a resized image for.

    A box of the original image is multiplied by `resized size / frame size`, and a detection
    divided by it. In "modern" the frame is the original image: each axis has the factor by which
    it was resized, rounding included. mmdetection 1.x multiplies both axes by the one factor
    `scale` of `resized_size`; in "mmdet1" the frame is `resized size / scale`, a fraction of a
    pixel more or less than the original image.

    Args:
        image_sizes: `[..., 2]` int, height and width after resizing.
        original_sizes: `[..., 2]` int, height and width before.
        short_side, long_side: what was given to `resized_size`.
        convention: "modern" or "mmdet1".

    Returns:
        `[..., 2]` float64, height and width.

    Example:
        >>> frame_sizes([800, 1067], [480, 640], 800, 1333, "mmdet1").numpy()
        array([480. , 640.2])
    """
    original_sizes = tf.cast(original_sizes, tf.float64)
    if convention == "modern":
        return original_sizes
    scale = _scaled(original_sizes, short_side, long_side) / original_sizes
    return tf.cast(image_sizes, tf.float64) / scale


def _scaled(sizes, short_side, long_side):
    """`[..., 2]` sizes at the largest scale that neither side forbids, not rounded."""
    sizes = tf.cast(sizes, tf.float64)
    short_side, long_side = tf.cast(short_side, tf.float64), tf.cast(long_side, tf.float64)
    return sizes * tf.minimum(
        long_side / tf.reduce_max(sizes, axis=-1, keepdims=True),
        short_side / tf.reduce_min(sizes, axis=-1, keepdims=True),
    )


def in_channel_order(images, channel_order):
    """RGB images as a network sees them: as they are, or with the channels reversed.

    Args:
        images: `[..., 3]`, RGB; an array or a tensor.
        channel_order: "rgb" or "bgr" (`data.channel_order`).

    Returns:
        the same type and shape.

    Example:
        >>> in_channel_order(np.array([1, 2, 3]), "bgr")
        array([3, 2, 1])
    """
    return images[..., ::-1] if channel_order == "bgr" else images


def preprocess_image(image_uint8, short_side, long_side, mean, std, channel_order="rgb"):
    """Resizes keeping the aspect ratio, bilinearly, and normalises: `(resize(x) - mean) / std`.

    Pixel centres are at half-integers and nothing is smoothed before shrinking, as in OpenCV's
    `INTER_LINEAR`. OpenCV computes 8-bit images in fixed point and rounds the result to whole grey
    levels, mostly down; here it stays float, hence up to 0.8 grey levels of difference before
    normalisation.

    Args:
        image_uint8: `[H, W, 3]` or `[B, H, W, 3]` RGB, uint8 (any real dtype works).
        short_side, long_side: see `resized_size`, pixels.
        mean, std: three numbers each, in grey levels (0..255), in the order of `channel_order`.
        channel_order: of the result, see `in_channel_order`.

    Returns:
        float32 `[h, w, 3]` or `[B, h, w, 3]`, not padded.

    Example:
        >>> mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
        >>> preprocess_image(tf.constant(image), 800, 1333, mean, std).shape
        TensorShape([800, 800, 3])
    """
    shape = tf.shape(image_uint8)
    size = resized_size(shape[-3], shape[-2], short_side, long_side)
    resized = tf.image.resize(image_uint8, size, method="bilinear", antialias=False)
    return normalize(in_channel_order(resized, channel_order), mean, std)


def training_image(image_uint8, size, flip, divisor):
    """Resizes, mirrors and pads the bytes of an image.

    OpenCV's `INTER_LINEAR`, which mmdetection uses: the positions are those of `preprocess_image`,
    the weights are multiples of 1/2048 and the result is rounded to whole grey levels.

    Args:
        image_uint8: uint8 `[H, W, 3]`.
        size: height and width to resize to, pixels.
        flip: whether to mirror left to right.
        divisor: what the padded sides are multiples of.

    Returns:
        uint8 `[h, w, 3]`, zeros at the bottom and the right.

    Example:
        >>> training_image(np.full((4, 6, 3), 7, np.uint8), (20, 30), False, 32).shape
        (32, 32, 3)
    """
    height, width = (int(side) for side in size)
    if flip:  # before resizing: there are fewer bytes to move
        image_uint8 = cv2.flip(image_uint8, 1)
    padded = np.zeros(
        (-(-height // divisor) * divisor, -(-width // divisor) * divisor, 3), np.uint8
    )
    cv2.resize(image_uint8, (width, height), dst=padded[:height, :width])
    return padded


def pad_to_multiple(images, divisor=32):
    """Pads `[..., h, w, C]` with zeros at the bottom and the right to multiples of `divisor`.

    Example:
        >>> pad_to_multiple(tf.zeros([1, 30, 40, 3])).shape
        TensorShape([1, 32, 64, 3])
    """
    shape = tf.shape(images)
    paddings = [[0, 0]] * (images.shape.rank - 3) + [
        [0, -shape[-3] % divisor],
        [0, -shape[-2] % divisor],
        [0, 0],
    ]
    return tf.pad(images, paddings)
