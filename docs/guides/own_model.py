"""# SEPC in your own Keras model

A small network of plain Keras layers that finds discs of two kinds and any size: for every cell of
a pyramid it says whether the centre of a disc lies there, and how large the disc is. The pyramid
goes through `SEPC`, which convolves across its levels.
"""

import keras
import numpy as np
import tensorflow as tf

from sepc_tf.layers import PConv
from sepc_tf.necks import FPN, SEPC

keras.utils.set_random_seed(0)
SIZE = 64

# ## Images and what is to be learnt
#
# Each image has one disc, bright or dark, with a radius between 3 and 24 pixels. Large discs belong
# to coarse levels: a disc of radius r is learnt on the level whose stride is the nearest to r / 2.
# A cell's target is (dark, bright, logarithm of the radius in strides).

STRIDES = (4, 8, 16)


def make_images(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.1, (count, SIZE, SIZE, 1)).astype(np.float32)
    targets = [np.zeros((count, SIZE // s, SIZE // s, 3), np.float32) for s in STRIDES]
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for image in range(count):
        radius = np.exp(rng.uniform(np.log(3), np.log(24)))
        y, x = rng.uniform(4, SIZE - 4, 2)
        kind = rng.integers(2)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        images[image, inside] += 1.0 if kind else -1.0
        level = np.argmin(np.abs(np.log(np.array(STRIDES) * 2 / radius)))
        stride = STRIDES[level]
        cell = targets[level][image, int(y) // stride, int(x) // stride]
        cell[kind], cell[2] = 1.0, np.log(radius / stride)
    return images, targets


# ## The model
#
# Three feature maps of strides 4, 8 and 16 become a pyramid of equal width. `PConv` convolves over
# space and scale. `SEPC` does so in stacked layers, and returns two pyramids: one for classes, one
# for boxes, here sizes. It stands where a head would convolve each level alone.


def down(x, filters):
    x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))


inputs = keras.Input([SIZE, SIZE, 1])
c2 = down(down(inputs, 8), 16)
c3 = down(c2, 16)
c4 = down(c3, 16)
pyramid = FPN(filters=16, num_levels=3, min_level=2)([c2, c3, c4])
pyramid = PConv(16, normalization="integrated")(pyramid)
class_pyramid, box_pyramid = SEPC.variant("sepc_lite", filters=16, num_convs=1)(pyramid)
classify = keras.layers.Conv2D(2, 1, bias_initializer=keras.initializers.Constant(-4.0))
measure = keras.layers.Conv2D(1, 1)
outputs = [
    keras.layers.Concatenate()([classify(classes), measure(boxes)])
    for classes, boxes in zip(class_pyramid, box_pyramid)
]
model = keras.Model(inputs, outputs)

# ## Training
#
# Nothing here is particular to this package: `compile` and `fit` as with any Keras model. Leave XLA
# off on a CPU (`jit_compile=False`).


def loss(target, output):
    found = keras.losses.binary_focal_crossentropy(
        target[..., :2], output[..., :2], from_logits=True
    )
    here = tf.reduce_max(target[..., :2], axis=-1)
    return 100 * found + here * tf.abs(target[..., 2] - output[..., 2])


images, targets = make_images(256, seed=0)
rate = keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=96)
model.compile(keras.optimizers.Adam(rate), [loss] * len(STRIDES), jit_compile=False)
model.fit(images, targets, batch_size=16, epochs=6, verbose=2)

# On new images, the highest score of all levels is the disc. It is found where the kind is right,
# the centre at most half a radius (or 6 pixels) from the truth, and the radius within a third.


def discs(levels):
    """(kind, y, x, radius) of the best cell of each image."""
    for cells in zip(*levels):
        best = max(range(len(STRIDES)), key=lambda level: cells[level][..., :2].max())
        row, column, kind = np.unravel_index(
            cells[best][..., :2].argmax(), cells[best][..., :2].shape
        )
        stride, size = STRIDES[best], cells[best][row, column, 2]
        yield kind, (row + 0.5) * stride, (column + 0.5) * stride, stride * np.exp(size)


images, targets = make_images(64, seed=1)
predicted = model.predict(images, verbose=0)
found = 0
for (kind, y, x, radius), (true_kind, v, u, true) in zip(discs(predicted), discs(targets)):
    near = np.hypot(y - v, x - u) <= max(true / 2, 6)
    found += kind == true_kind and near and abs(np.log(radius / true)) < np.log(4 / 3)
print(f"{found} of {len(images)} discs found")

# ## Saving
#
# The layers are registered with Keras, so that a saved model needs no `custom_objects`; `sepc_tf`
# must have been imported where it is loaded.

model.save("discs.keras")
loaded = keras.models.load_model("discs.keras", compile=False)
for before, after in zip(predicted, loaded.predict(images, verbose=0)):
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
