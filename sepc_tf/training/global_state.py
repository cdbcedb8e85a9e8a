"""What a training sets for the whole process, and puts back when it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf
from tensorflow.python.framework import config as framework_config


@contextlib.contextmanager
def global_state(seed: int, deterministic: bool, precision: str | None) -> Iterator[None]:
    """Seeds, determinism and precision of a training, inside a `with` block.

    The precision and the determinism of before come back however the block ends. The seeds do not:
    Python's, NumPy's and TensorFlow's global generators stay where the training left them.

    Args:
        seed: of Python's, NumPy's and TensorFlow's global generators.
        deterministic: whether TensorFlow's operations give the same bits each time; False leaves
            it as it is.
        precision: a Keras policy as "mixed_float16"; None for float32.

    Example:
        >>> with global_state(seed=0, deterministic=True, precision=None):
        ...     numbers = tf.random.normal([2])  # or a training
    """
    with contextlib.ExitStack() as before:
        keras.utils.set_random_seed(seed)
        if deterministic:
            # The way back has no public name: looked up before anything is changed.
            disable = framework_config.disable_op_determinism
            if not framework_config.is_op_determinism_enabled():
                before.callback(disable)
            tf.config.experimental.enable_op_determinism()
        before.callback(
            keras.mixed_precision.set_global_policy, keras.mixed_precision.global_policy()
        )
        keras.mixed_precision.set_global_policy(precision or "float32")
        yield
