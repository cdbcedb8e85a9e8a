"""What every neck must be: usable by itself, of any size, saved, compiled, in mixed precision."""

import keras
import numpy as np
import tensorflow as tf

from sepc_tf.checkpoints import named_variables


def random_maps(sizes, channels, batch=2, seed=0):
    """Maps of a backbone or a pyramid: list of `[batch, H_l, W_l, C_l]` float32."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, *size, count) for size, count in zip(sizes, channels)]
    return [tf.constant(rng.standard_normal(shape), tf.float32) for shape in shapes]


def check_neck(make_neck, maps, tmp_path):
    """Saves and loads a neck in a functional model of unknown size; compiles it; in bfloat16.

    Args:
        make_neck: function of keyword arguments `name` and `dtype`.
        maps: list of float32 maps that it takes.
        tmp_path: folder to write to.

    Returns:
        its outputs.
    """
    inputs = [keras.Input((None, None, x.shape[-1])) for x in maps]
    neck = make_neck(name="neck")
    model = keras.Model(inputs, neck(inputs))
    rng = np.random.default_rng(1)
    for name, variable in named_variables(neck).items():
        if name.endswith(("bias", "beta")):
            variable.assign(0.3 * rng.standard_normal(variable.shape))
    outputs = neck(maps)
    assert neck.compute_output_shape([x.shape for x in maps]) == [tuple(y.shape) for y in outputs]

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for expected, got in zip(outputs, loaded(maps), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)

    for expected, got in zip(outputs, tf.function(neck, jit_compile=True)(maps), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)

    half = make_neck(name="neck", dtype="mixed_bfloat16")
    half.build([x.shape for x in maps])
    for mine, theirs in zip(half.variables, neck.variables, strict=True):
        assert "float32" in str(mine.dtype)
        mine.assign(theirs)
    for expected, got in zip(outputs, half([tf.cast(x, "bfloat16") for x in maps]), strict=True):
        assert got.dtype == tf.bfloat16
        difference = np.abs(np.float32(got) - expected)
        assert difference.max() < 0.06 * np.abs(expected).max()
    return outputs
