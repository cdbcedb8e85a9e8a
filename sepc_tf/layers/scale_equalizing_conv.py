"""Scale-equalising convolution: one kernel for the whole pyramid, deformed above its bottom."""

import keras
import tensorflow as tf

from sepc_tf.layers.kernel_initializer import PAPER_STDDEV
from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.conv2d import conv2d, conv2d_output_shape
from sepc_tf.ops.deform_conv2d import deform_conv2d


@keras.saving.register_keras_serializable(package="sepc_tf")
class ScaleEqualizingConv(keras.layers.Layer):
    """A convolution shared by all levels: plain at the finest, deformable at every other.

    On level 0 `y_0 = w * x_0 + b`. On the levels above, the taps of the same kernel w move by
    offsets predicted from the level itself: `y_l(p) = sum_k w_k x_l(p + p_k + offset_k(p)) + b`
    (deformable convolution, version 1). The offset convolution starts at zero, so a new layer
    equals a plain convolution on every level.

    Variables: `kernel` `[k, k, C, filters]`, `bias` `[filters]`, and with `deformable`
    `offset/kernel` `[k, k, C, 2 k k]`, `offset/bias` `[2 k k]`.

    Args:
        filters: number of output channels.
        kernel_size: side of the square kernel.
        strides: step in both directions.
        padding: "same": `(kernel_size - 1) // 2` zeros on all four sides; "valid": none, maps
            shrink by `kernel_size - 1` (as the extra convolutions of the authors' code do).
        deformable: False makes it a plain shared convolution, without offset variables.
        use_bias: whether a bias is added.
        kernel_initializer: of the kernel; N(0, 0.01) by default.

    Call arguments:
        pyramid: list of `[N, H_l, W_l, C]` maps, finest first; any number of levels.

    Returns:
        list of `[N, H_l', W_l', filters]` maps.

    Example:
        >>> conv = ScaleEqualizingConv(8)
        >>> fine, coarse = conv([tf.zeros([1, 8, 8, 4]), tf.zeros([1, 4, 4, 4])])

    Source: paper, section 4 and appendix 2.
    """

    def __init__(
        self,
        filters,
        kernel_size=3,
        strides=1,
        padding="same",
        deformable=True,
        use_bias=True,
        kernel_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if padding not in ("same", "valid"):
            raise ValueError(f"padding must be 'same' or 'valid', got {padding!r}")
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.deformable = deformable
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.RandomNormal(stddev=PAPER_STDDEV)
        )
        self._pixels = (kernel_size - 1) // 2 if padding == "same" else 0
        if deformable:
            self.offset = SymmetricConv2D(
                2 * kernel_size * kernel_size,
                kernel_size,
                strides=strides,
                padding=self._pixels,
                kernel_initializer="zeros",
                dtype=self.dtype_policy,
                name="offset",
            )

    def build(self, pyramid_shape):
        channels = pyramid_shape[0][-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, channels, self.filters),
            initializer=self.kernel_initializer,
            trainable=True,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.filters,), initializer="zeros", trainable=True
            )
        if self.deformable:
            self.offset.build(tuple(pyramid_shape[0]))
        self.built = True

    def call(self, pyramid):
        return [self.convolve(x, deform=level > 0) for level, x in enumerate(pyramid)]

    def convolve(self, x, deform):
        """One map `[N, H, W, C]` -> `[N, H', W', filters]`; plain if not `deform`."""
        kernel = tf.cast(tf.convert_to_tensor(self.kernel), x.dtype)
        if deform and self.deformable:
            y = deform_conv2d(x, self.offset(x), kernel, strides=self.strides, padding=self._pixels)
        else:
            y = conv2d(x, kernel, strides=self.strides, padding=self._pixels)
        if self.use_bias:
            y = tf.nn.bias_add(y, tf.cast(tf.convert_to_tensor(self.bias), x.dtype))
        return y

    def compute_output_shape(self, pyramid_shape):
        return [self.output_shape_of_level(shape) for shape in pyramid_shape]

    def output_shape_of_level(self, shape):
        """Shape of one output map for the shape of one input map."""
        return conv2d_output_shape(
            shape, self.filters, self.kernel_size, self.strides, self._pixels
        )

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "deformable": self.deformable,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
