"""A plain convolution layer with the symmetric padding of PyTorch."""

import keras
import tensorflow as tf

from sepc_tf.ops.conv2d import conv2d, conv2d_output_shape


@keras.saving.register_keras_serializable(package="sepc_tf")
class SymmetricConv2D(keras.layers.Layer):
    """2-D convolution whose zero padding is the same on all four sides, whatever the stride.

    Variables: `kernel` `[k, k, C_in / groups, filters]` and `bias` `[filters]`.

    Args:
        filters: number of output channels.
        kernel_size: side of the square kernel.
        strides: step in both directions.
        padding: pixels on each side; None for `(kernel_size - 1) // 2`.
        groups: number of channel groups.
        use_bias: whether a bias is added.
        kernel_initializer, bias_initializer: as in Keras.
        frozen: makes the variables non-trainable for good; `trainable` can be set back to True by
            whoever owns the model, this cannot.

    Input `[N, H, W, C]`, output `[N, H', W', filters]` with
    `H' = (H + 2 padding - kernel_size) // strides + 1`.

    Example:
        >>> SymmetricConv2D(8, 3, strides=2)(tf.zeros([1, 7, 8, 4])).shape
        TensorShape([1, 4, 4, 8])
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding=None,
        groups=1,
        use_bias=True,
        kernel_initializer="he_normal",
        bias_initializer="zeros",
        frozen=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = (kernel_size - 1) // 2 if padding is None else padding
        self.groups = groups
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.frozen = frozen

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.groups or self.filters % self.groups:
            raise ValueError(
                f"{self.name}: groups must divide the input channels and filters, got "
                f"groups={self.groups}, {channels} channels, {self.filters} filters"
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, channels // self.groups, self.filters),
            initializer=self.kernel_initializer,
            trainable=not self.frozen,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                trainable=not self.frozen,
            )
        self.built = True

    def call(self, x):
        y = conv2d(
            x,
            tf.cast(tf.convert_to_tensor(self.kernel), x.dtype),
            strides=self.strides,
            padding=self.padding,
            groups=self.groups,
        )
        if self.use_bias:
            y = tf.nn.bias_add(y, tf.cast(tf.convert_to_tensor(self.bias), x.dtype))
        return y

    def compute_output_shape(self, input_shape):
        return conv2d_output_shape(
            input_shape, self.filters, self.kernel_size, self.strides, self.padding
        )

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "groups": self.groups,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "frozen": self.frozen,
        }
