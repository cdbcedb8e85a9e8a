"""A batch of three objects, of which one has no mask."""

import numpy as np
import tensorflow as tf

from sepc_tf.ops.bitmaps import pack_masks


def objects_batch():
    large, small = np.zeros((2, 32, 48), bool)
    large[0:24, 0:40], small[8:16, 8:24] = True, True
    bitmaps, frames, offsets = pack_masks([small, large, None])
    boxes = [[8, 8, 24, 16], [0, 0, 40, 24], [32, 16, 48, 32]]
    return {
        "boxes": tf.constant([boxes], tf.float32),
        "labels": tf.constant([[4, 1, 0]]),
        "image_sizes": tf.constant([[32, 41]]),
        "bitmaps": tf.constant(bitmaps)[None],
        "frames": tf.constant(frames)[None],
        "offsets": tf.constant(offsets)[None],
    }
