"""Instance masks of a padded batch, kept as small as they are.

Of every object only the pixels inside its mask's own tight box (its frame) are kept, the objects of
an image one after the other in one flat buffer. A pixel (row r, column c) of an object with the
frame (x, y, width, height) is `bitmaps[offset + (r - y) * width + (c - x)]` inside the frame and 0
outside of it, so any crop or resampling of masks is one gather (`read_bitmaps`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# The offset of an object without a mask: its box is trained, its mask has no loss.
NO_MASK = -1


def pack_masks(
    masks: Sequence[np.ndarray | None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The masks of one image in the compact form.

    Args:
        masks: for each object a bool (or 0/1) `[H, W]` mask, or None where it has none.

    Returns:
        bitmaps uint8 `[L]` of 0 and 1; frames int32 `[M, 4]`, x, y, width, height in pixels, 0 for
        an object whose mask is empty or missing; offsets int32 `[M]`, `NO_MASK` where it is
        missing.

    Example:
        >>> mask = np.zeros((4, 5), bool)
        >>> mask[1, 2] = mask[2, 3] = True
        >>> bitmaps, frames, offsets = pack_masks([None, mask])
        >>> bitmaps, frames.tolist(), offsets.tolist()
        (array([1, 0, 0, 1], dtype=uint8), [[0, 0, 0, 0], [2, 1, 2, 2]], [-1, 0])
    """
    parts = [np.zeros(0, np.uint8)]
    frames = np.zeros((len(masks), 4), np.int32)
    offsets = np.full(len(masks), NO_MASK, np.int32)
    start = 0
    for index, mask in enumerate(masks):
        if mask is None:
            continue
        offsets[index] = start
        rows, columns = (np.flatnonzero(np.any(mask, axis=axis)) for axis in (1, 0))
        if len(rows):
            y, x, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
            frames[index] = x, y, right - x, bottom - y
            parts.append(mask[y:bottom, x:right].astype(np.uint8).reshape(-1))
            start += parts[-1].size
    return np.concatenate(parts), frames, offsets


def read_bitmaps(
    bitmaps: tf.Tensor,
    frames: tf.Tensor,
    offsets: tf.Tensor,
    objects: tf.Tensor,
    rows: tf.Tensor,
    columns: tf.Tensor,
) -> tf.Tensor:
    """Pixels of the masks of chosen objects.

    Args:
        bitmaps: uint8 `[B, L]`, L at least 1; frames: int32 `[B, M, 4]`; offsets: int32 `[B, M]`;
            see `pack_masks`.
        objects: int32 `[B, N]`, which of the M objects each of the N readings is of.
        rows, columns: int32 `[B, N, ...]`, pixels of the image; they broadcast against each other,
            so that `[B, N, h, 1]` and `[B, N, 1, w]` read a grid.

    Returns:
        uint8 `[B, N, ...]` of 0 and 1; 0 outside of the frame and for an object without a mask.

    Example:
        >>> mask = np.zeros((4, 5), bool)
        >>> mask[1, 2] = mask[2, 3] = True
        >>> packed = [tf.constant(x)[None] for x in pack_masks([None, mask])]
        >>> rows, columns = tf.range(4)[None, None, :, None], tf.range(5)[None, None, None]
        >>> read_bitmaps(*packed, tf.constant([[1]]), rows, columns).numpy()[0, 0]
        array([[0, 0, 0, 0, 0],
               [0, 0, 1, 0, 0],
               [0, 0, 0, 1, 0],
               [0, 0, 0, 0, 0]], dtype=uint8)
    """
    rows, columns = tf.convert_to_tensor(rows), tf.convert_to_tensor(columns)
    frames = tf.gather(frames, objects, batch_dims=1)  # [B, N, 4]
    offsets = tf.gather(offsets, objects, batch_dims=1)  # [B, N]
    like_pixels = tf.concat([tf.shape(objects), tf.ones([rows.shape.rank - 2], tf.int32)], axis=0)
    x, y, width, height, offset = (
        tf.reshape(values, like_pixels) for values in (*tf.unstack(frames, axis=-1), offsets)
    )
    rows, columns = rows - y, columns - x
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width) & (offset >= 0)
    places = tf.where(inside, offset + rows * width + columns, 0)
    pixels = tf.gather(bitmaps, places, batch_dims=1)
    return tf.where(inside, pixels, tf.zeros([], pixels.dtype))
