"""From grey levels to the numbers that a network takes."""

from __future__ import annotations

import tensorflow as tf

# Of ImageNet, RGB, in grey levels: what the published detectors are trained with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def normalize(images: tf.Tensor, mean: tf.Tensor, std: tf.Tensor) -> tf.Tensor:
    """`(images - mean) / std`, channel by channel.

    Args:
        images: `[..., H, W, 3]` of any real dtype, grey levels.
        mean, std: three numbers each, grey levels, in the order of the channels.

    Returns:
        float32 `[..., H, W, 3]`.

    Example:
        >>> normalize(tf.zeros([1, 1, 3]), [2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).numpy().ravel()
        array([-2., -2., -2.], dtype=float32)
    """
    shape = tf.shape(images)
    # TensorFlow broadcasts whole rows five times faster than it broadcasts three numbers.
    rows = tf.reshape(tf.cast(images, tf.float32), tf.concat([shape[:-2], [-1]], axis=0))
    mean, std = (tf.tile(tf.cast(x, tf.float32), shape[-2:-1]) for x in (mean, std))
    return tf.ensure_shape(tf.reshape((rows - mean) / std, shape), images.shape)


def normalized_batch(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """A batch whose `images` a network can take.

    Training batches hold uint8 pixels, a quarter of the bytes, and what they are normalised with.
    `(images - pixel_mean) / pixel_std` is computed within each image and 0 in its padding.

    Args:
        batch: dict of `images` `[B, H, W, 3]`, `image_sizes` `[B, 2]` int32, height and width
            without the padding, and other entries; where `images` are uint8 also `pixel_mean` and
            `pixel_std` `[B, 3]` float32, grey levels.

    Returns:
        The batch as it is if `images` are floats; otherwise with float32 `images`, without
        `pixel_mean` and `pixel_std`.

    Raises:
        ValueError: uint8 images without the numbers to normalise them with.

    Example:
        >>> batch = {"images": tf.fill([1, 2, 3, 3], tf.constant(9, tf.uint8)),
        ...          "image_sizes": tf.constant([[2, 2]]),
        ...          "pixel_mean": tf.ones([1, 3]), "pixel_std": 2 * tf.ones([1, 3])}
        >>> normalized_batch(batch)["images"].numpy()[0, 0, :, 0]
        array([4., 4., 0.], dtype=float32)
    """
    images = batch["images"]
    if images.dtype != tf.uint8:
        return batch
    if not {"pixel_mean", "pixel_std"} <= set(batch):
        raise ValueError(
            "a batch of uint8 images needs pixel_mean and pixel_std, [batch, 3] each; give them, "
            "or normalised float images"
        )
    batch = dict(batch)
    mean, std = (tf.cast(batch.pop(name), tf.float32) for name in ("pixel_mean", "pixel_std"))
    count, height, width = tf.unstack(tf.shape(images)[:3])
    inside_rows, inside_columns = (
        tf.cast(tf.range(side) < batch["image_sizes"][:, i : i + 1], tf.float32)
        for i, side in enumerate((height, width))
    )
    # Rows of pixels as one axis, as in `normalize`.
    rows = tf.reshape(tf.cast(images, tf.float32), [count, height, -1])
    mean = tf.tile(mean[:, None], [1, 1, width])
    factors = tf.reshape(inside_columns[:, :, None] / std[:, None], [count, 1, -1])
    rows = (rows - mean) * factors * inside_rows[:, :, None]
    return {**batch, "images": tf.ensure_shape(tf.reshape(rows, tf.shape(images)), images.shape)}
