"""Group normalisation in float32, the same on both Kerases."""

import math

import keras
import tensorflow as tf

from sepc_tf import compat


@keras.saving.register_keras_serializable(package="sepc_tf")
class GroupNormalization(keras.layers.Layer):
    """Normalises each image by the statistics of its channels in groups.

    `y = gamma * (x - m) / sqrt(v + epsilon) + beta`, with the mean m and the biased variance v over
    the pixels of one image and the channels of one group: no image and no replica sees another, and
    training does not differ from inference. `keras.layers.GroupNormalization` is not used because
    Keras 2's takes the statistics in the compute type.

    Variables: `gamma`, `beta`, each `[C]` float32, also under mixed precision.

    Args:
        groups: number of groups of neighbouring channels; `gcd(groups, C)` where it does not divide
            the number of channels C.
        epsilon: added to the variance.

    Call arguments:
        x: `[N, H, W, C]`.

    Returns:
        `[N, H, W, C]` of the same type.

    Example:
        >>> GroupNormalization(groups=2)(tf.ones([1, 4, 4, 6])).shape
        TensorShape([1, 4, 4, 6])

    Source: Wu and He 2018 (arXiv 1803.08494).
    """

    def __init__(self, groups=32, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        for name, initializer in (("gamma", "ones"), ("beta", "zeros")):
            variable = self.add_weight(
                name=name,
                shape=(channels,),
                initializer=initializer,
                dtype="float64" if self.variable_dtype == "float64" else "float32",
                **compat.float32_weight_options(),
            )
            setattr(self, name, variable)
        self.built = True

    def call(self, x):
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        channels = x.shape[-1]
        groups = math.gcd(self.groups, channels)
        shape = tf.shape(x)
        # Channel c is in group c // (C / groups).
        split = tf.concat([shape[:3], [groups, channels // groups]], axis=0)
        grouped = tf.reshape(tf.cast(x, gamma.dtype), split)
        mean = tf.reduce_mean(grouped, axis=[1, 2, 4], keepdims=True)
        centred = grouped - mean
        variance = tf.reduce_mean(tf.square(centred), axis=[1, 2, 4], keepdims=True)
        normalised = tf.reshape(centred * tf.math.rsqrt(variance + self.epsilon), shape)
        return tf.cast(normalised * gamma + beta, x.dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "groups": self.groups, "epsilon": self.epsilon}
