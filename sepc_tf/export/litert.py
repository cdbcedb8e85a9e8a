"""The candidates' function as a LiteRT (TensorFlow Lite) model of built-in operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from sepc_tf.export.candidates import frozen

PRECISIONS = ("float32", "float16", "int8")


def write(
    module: tf.Module, file: Path, precision: str, samples: Callable[[], Iterator[np.ndarray]]
) -> None:
    """Writes a model with the inputs `images` and `image_sizes`, and two outputs in order.

    Args:
        module: what `candidates` returned.
        file: where to write.
        precision: "float32"; "float16": weights are stored in half precision; "int8": the weights
            of convolutions are stored as bytes, one scale for each channel, and activations are
            quantised as they come; everything else stays float32.
        samples: not used.
    """
    # Without an owner of variables, which the frozen function does not have.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen(module)])
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    file.write_bytes(converter.convert())
