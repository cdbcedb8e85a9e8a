"""Parts that the tests of the training callbacks share."""

import keras
import numpy as np
import pytest


@pytest.fixture
def model():
    """A compiled model of one layer, "dense", with one weight and a bias."""
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, name="dense")])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def set_kernel():
    """Sets the weight of `model`."""

    def set_kernel(model, value):
        weights = [np.array([[value]], np.float32), np.zeros(1, np.float32)]
        model.layers[0].set_weights(weights)

    return set_kernel
