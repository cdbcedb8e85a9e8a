"""Small parts and batches for detector tests."""

import keras
import numpy as np

from sepc_tf.necks import FPN, SEPC, ConvTowers


@keras.saving.register_keras_serializable(package="sepc_tf_tests")
class TinyBackbone(keras.layers.Layer):
    """Three strided convolutions to maps of strides 8, 16, 32, with an optional batch norm."""

    def __init__(self, filters=4, batch_norm=False, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.batch_norm = batch_norm
        self.norm = keras.layers.BatchNormalization(name="norm") if batch_norm else None
        self.convs = [
            keras.layers.Conv2D(filters, 3, strides, "same", activation="relu", name=f"conv_{i}")
            for i, strides in enumerate((8, 2, 2))
        ]

    def build(self, input_shape):
        shape = tuple(input_shape)
        if self.norm:
            self.norm.build(shape)
        for conv in self.convs:
            conv.build(shape)
            shape = conv.compute_output_shape(shape)
        self.built = True

    def call(self, images, training=None):
        x = self.norm(images, training=training) if self.norm else images
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return maps

    def compute_output_shape(self, input_shape):
        shape, shapes = tuple(input_shape), []
        for conv in self.convs:
            shape = tuple(conv.compute_output_shape(shape))
            shapes.append(shape)
        return shapes

    def get_config(self):
        config = {"filters": self.filters, "batch_norm": self.batch_norm}
        return {**super().get_config(), **config}


def tiny_detector(
    cls, num_classes=3, convention="modern", batch_norm=False, variant=None, **options
):
    """A detector of class `cls` with a few thousand weights; `variant` is one of SEPC's."""
    if variant:
        towers = SEPC.variant(variant, filters=8, num_convs=1, name="towers")
    else:
        towers = ConvTowers(8, num_convs=1, name="towers")
    return cls.from_parts(
        backbone=TinyBackbone(batch_norm=batch_norm, name="backbone"),
        necks=FPN(8, name="fpn"),
        towers=towers,
        num_classes=num_classes,
        convention=convention,
        name="detector",
        **options,
    )


def random_batch(seed=0, batch=4, size=(64, 96), num_classes=3, max_boxes=4):
    """A batch with 0, 1, ... boxes per image, padded with -1."""
    rng = np.random.default_rng(seed)
    height, width = size
    corner = rng.uniform(0, 0.6, (batch, max_boxes, 2)) * (width, height)
    sides = rng.uniform(0.1, 0.4, (batch, max_boxes, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + sides], -1).astype(np.float32)
    labels = rng.integers(0, num_classes, (batch, max_boxes), np.int32)
    absent = np.arange(max_boxes)[None] >= (np.arange(batch) % (max_boxes + 1))[:, None]
    boxes[absent], labels[absent] = -1, -1
    image_sizes = np.tile(np.int32([size]), (batch, 1)) - rng.integers(0, 9, (batch, 2), np.int32)
    return {
        "images": rng.normal(size=(batch, height, width, 3)).astype(np.float32),
        "image_sizes": image_sizes,
        "original_sizes": 2 * image_sizes,
        "boxes": boxes,
        "labels": labels,
        "image_ids": np.arange(batch, dtype=np.int64),
    }
