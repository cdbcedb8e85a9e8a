"""What differs between Keras 2 (TensorFlow 2.15) and Keras 3 (TensorFlow 2.21), and nothing else.

Every other module writes one form that runs on both: `import keras`, `add_weight` by keyword, raw
`tf.*` inside `Layer.call`. A difference that needs a branch gets a function here.
"""

import keras

KERAS_3 = int(keras.__version__.split(".")[0]) >= 3


def float32_weight_options():
    """Keywords for `Layer.add_weight` that keep a weight float32 under mixed precision.

    Example:
        >>> self.add_weight(name="gamma", shape=(8,), dtype="float32", **float32_weight_options())
    """
    return {"autocast": False} if KERAS_3 else {"experimental_autocast": False}
