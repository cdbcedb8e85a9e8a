"""Group normalisation of a feature map."""

import keras
import tensorflow as tf

from sepc_tf import compat


@keras.saving.register_keras_serializable(package="sepc_tf")
class GroupNormalization(keras.layers.Layer):
    """Normalises each image by the mean and variance of its groups of channels.

    `y = gamma * (x - mean) / sqrt(variance + epsilon) + beta`, where the mean and the (biased)
    variance are taken over all pixels and the channels of one group of one image, and gamma, beta
    belong to a channel. The same in training and evaluation, and for any number of replicas.

    Variables: `gamma`, `beta`, each `[C]`: float64 in a layer of dtype "float64", otherwise
    float32, also under mixed precision; the arithmetic is of that type. (Keras' own layer computes
    in half precision on Keras 2.)

    Args:
        groups: number of groups, of C / groups neighbouring channels each.
        epsilon: added to the variance.

    Call arguments:
        x: `[N, H, W, C]` map.

    Returns:
        `[N, H, W, C]`, the dtype of `x`.

    Raises:
        ValueError: `groups` does not divide the channels.

    Example:
        >>> GroupNormalization(groups=2)(tf.ones([1, 8, 8, 6])).shape
        TensorShape([1, 8, 8, 6])

    Source: Wu and He 2018 (arXiv 1803.08494).
    """

    def __init__(self, groups=32, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"{self.name}: group normalisation in {self.groups} groups needs channels that are "
                f"a multiple of {self.groups}, got {channels}"
            )
        self.gamma = self._add_vector("gamma", channels, "ones")
        self.beta = self._add_vector("beta", channels, "zeros")
        self.built = True

    def _add_vector(self, name, channels, initializer):
        return self.add_weight(
            name=name,
            shape=(channels,),
            initializer=initializer,
            dtype="float64" if self.variable_dtype == "float64" else "float32",
            **compat.float32_weight_options(),
        )

    def call(self, x):
        shape = tf.shape(x)
        gamma, beta = (tf.convert_to_tensor(v) for v in (self.gamma, self.beta))
        width = x.shape[-1] // self.groups
        grouped = tf.reshape(tf.cast(x, gamma.dtype), [shape[0], -1, self.groups, width])
        mean, variance = tf.nn.moments(grouped, axes=[1, 3], keepdims=True)
        normalised = (grouped - mean) * tf.math.rsqrt(variance + self.epsilon)
        y = tf.cast(tf.reshape(normalised, shape) * gamma + beta, x.dtype)
        return tf.ensure_shape(y, x.shape)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "groups": self.groups, "epsilon": self.epsilon}
