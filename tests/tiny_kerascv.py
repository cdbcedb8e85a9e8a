"""A small KerasCV backbone, batches in KerasCV's form, and a compiled stock model."""

import keras
import keras_cv
import numpy as np
from tiny_detector import random_batch

LEVELS = ("P3", "P4", "P5")
SIZE = (64, 96)


@keras.saving.register_keras_serializable(package="sepc_tf_tests")
class TinyKerasCVBackbone(keras_cv.models.Backbone):
    """Three strided convolutions, which KerasCV takes for one of its backbones."""

    def __init__(self, input_shape=(*SIZE, 3), **kwargs):
        inputs = x = keras.Input(tuple(input_shape))
        for level, strides in zip(LEVELS, (8, 2, 2)):
            x = keras.layers.Conv2D(8, 3, strides, "same", activation="relu", name=level)(x)
        super().__init__(inputs=inputs, outputs=x, **kwargs)
        self.pyramid_level_inputs = {level: level for level in LEVELS}

    def get_config(self):
        return {**super().get_config(), "input_shape": self.input_shape[1:]}


def stock_retinanet(backbone=None, **parts):
    """A stock model for three classes."""
    return keras_cv.models.RetinaNet(
        backbone=backbone or TinyKerasCVBackbone(),
        num_classes=3,
        bounding_box_format="xyxy",
        **parts,
    )


def stock_batch():
    """Images and labels; the four images have 0, 1, 2 and 3 boxes."""
    batch = random_batch(seed=1, size=SIZE)
    labels = {"boxes": batch["boxes"], "classes": batch["labels"].astype(np.float32)}
    return batch["images"], labels


def compile_stock(model):
    """Compiles a stock model; returns it."""
    model.compile(
        optimizer=keras.optimizers.Adam(0.003),
        box_loss="smoothl1",
        classification_loss="focal",
        jit_compile=False,
    )
    return model
