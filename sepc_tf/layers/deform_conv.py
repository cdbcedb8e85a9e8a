"""The deformable convolution as a Keras layer that predicts its own offsets."""

import keras
import tensorflow as tf

from sepc_tf.ops.deform_conv2d import deform_conv2d


@keras.saving.register_keras_serializable(package="sepc_tf")
class DeformConv2D(keras.layers.Layer):
    """Deformable 2-D convolution (DCNv1, or DCNv2 with `modulated=True`).

    A sublayer convolution named `"offset"`, of the same kernel size, stride, padding and dilation,
    predicts the displacement of every tap (and with `modulated=True` its factor, through a
    sigmoid) from the input itself; it starts at zero, so that the layer starts as an ordinary
    convolution (times 0.5 when modulated). See `sepc_tf.ops.deform_conv2d` for the equation.

    Channels of the offset convolution: `2 * G * K` offsets (for group `g` and tap `k`, dy at
    `2 * (g * K + k)`, dx next), then, when modulated, `G * K` mask logits.

    Variables: `kernel [kh, kw, C / groups, filters]`, `bias [filters]`, `offset/kernel`,
    `offset/bias`.

    Args:
        filters: number of output channels.
        kernel_size: int or (height, width).
        strides: int or (vertical, horizontal).
        padding: "same", "valid", an int, or ((top, bottom), (left, right)).
        dilation_rate: int or (vertical, horizontal).
        groups: channel groups of the convolution.
        offset_groups: channel groups that are displaced independently.
        modulated: whether taps are also weighted (DCNv2).
        use_bias: whether a bias is added.
        implementation: "auto", "xla" or "native", as in `sepc_tf.ops.deform_conv2d`.
        kernel_initializer, kernel_regularizer, bias_initializer: as in `keras.layers.Conv2D`;
            they do not concern the offset convolution.

    Call args:
        inputs: `[N, H, W, C]`.

    Returns:
        `[N, Ho, Wo, filters]`, of the compute type.

    Raises:
        ValueError: a setting does not fit the input; the message names it.

    Example:
        >>> layer = DeformConv2D(64, 3, strides=2)
        >>> layer(tf.zeros([1, 32, 32, 16])).shape
        TensorShape([1, 16, 16, 64])

    Source: Dai et al., Deformable Convolutional Networks (arXiv 1703.06211).
    """

    def __init__(
        self,
        filters,
        kernel_size=3,
        strides=1,
        padding="same",
        dilation_rate=1,
        groups=1,
        offset_groups=1,
        modulated=False,
        use_bias=True,
        implementation="auto",
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = _pair(kernel_size)
        self.strides = _pair(strides)
        self.padding = _plain(padding)
        self.dilation_rate = _pair(dilation_rate)
        self.groups = groups
        self.offset_groups = offset_groups
        self.modulated = modulated
        self.use_bias = use_bias
        self.implementation = implementation
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.offset = keras.layers.Conv2D(
            (3 if modulated else 2) * offset_groups * taps,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding if isinstance(self.padding, str) else "valid",
            dilation_rate=self.dilation_rate,
            kernel_initializer="zeros",
            name="offset",
            dtype=kwargs.get("dtype"),
        )

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None or channels % self.groups:
            raise ValueError(
                f"inputs: expected a number of channels divisible by groups={self.groups}, "
                f"got shape {tuple(input_shape)}"
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, channels // self.groups, self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            trainable=True,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                trainable=True,
            )
        self.offset.build((input_shape[0], None, None, channels))
        self.built = True

    def call(self, inputs):
        fields = self.offset(self._padded(inputs))
        offset, mask = fields, None
        if self.modulated:
            taps = self.kernel_size[0] * self.kernel_size[1]
            offset, mask = tf.split(
                fields, [2 * self.offset_groups * taps, self.offset_groups * taps], axis=-1
            )
            mask = tf.sigmoid(mask)
        outputs = deform_conv2d(
            inputs,
            offset,
            tf.cast(tf.convert_to_tensor(self.kernel), inputs.dtype),
            mask=mask,
            strides=self.strides,
            padding=self.padding,
            dilations=self.dilation_rate,
            groups=self.groups,
            offset_groups=self.offset_groups,
            implementation=self.implementation,
        )
        if self.use_bias:
            outputs += tf.cast(tf.convert_to_tensor(self.bias), outputs.dtype)
        return outputs

    def _padded(self, inputs):
        """The input of the offset convolution, which itself knows no explicit padding."""
        if isinstance(self.padding, str):
            return inputs
        sides = self.padding
        if isinstance(sides, int):
            sides = ((sides, sides), (sides, sides))
        return tf.pad(inputs, [(0, 0), *sides, (0, 0)])

    def compute_output_shape(self, input_shape):
        sizes = list(input_shape)
        for axis in (0, 1):
            size = input_shape[axis + 1]
            if size is None:
                continue
            if self.padding == "same":
                sizes[axis + 1] = -(-size // self.strides[axis])
                continue
            if isinstance(self.padding, int):
                size += 2 * self.padding
            elif self.padding != "valid":
                size += sum(self.padding[axis])
            extent = (self.kernel_size[axis] - 1) * self.dilation_rate[axis] + 1
            sizes[axis + 1] = (size - extent) // self.strides[axis] + 1
        return (*sizes[:3], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
            "offset_groups": self.offset_groups,
            "modulated": self.modulated,
            "use_bias": self.use_bias,
            "implementation": self.implementation,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _plain(padding):
    """Padding as str, int or tuples; a config read from JSON holds lists."""
    if isinstance(padding, str):
        return padding.lower()
    return padding if isinstance(padding, int) else tuple(tuple(side) for side in padding)
