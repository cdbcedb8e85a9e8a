"""Pyramid convolution: a 3-D convolution over the levels and pixels of a feature pyramid."""

import itertools

import keras
import tensorflow as tf

from sepc_tf.layers.kernel_initializer import kernel_initializer
from sepc_tf.layers.pyramid_normalization import make_normalization
from sepc_tf.layers.scale_equalizing_conv import ScaleEqualizingConv
from sepc_tf.ops.resize import resize_bilinear_align_corners


@keras.saving.register_keras_serializable(package="sepc_tf")
class PConv(keras.layers.Layer):
    """Pyramid convolution, then normalisation and activation.

    `y_l = Upsample(w_1 * x_(l+1)) + w_0 * x_l + w_-1 *(stride 2) x_(l-1)`

    with three independent 3x3 kernels, each with its bias, zero padding, and bilinear up-sampling
    with aligned corners to the exact size of level l. The finest level has no w_-1 term, the
    coarsest no w_1 term. With `deformable` all terms of every output level but the finest are
    scale-equalising (see `ScaleEqualizingConv`).

    Sublayers: `coarser` (w_1, on x_(l+1)), `same` (w_0), `finer` (w_-1, on x_(l-1)), `norm`.

    Args:
        filters: number of output channels.
        scale_kernel_size: 3, or 1 for the w_0 term alone (the plain shared head).
        deformable: whether the convolutions are scale-equalising.
        normalization: "integrated", "single", "independent" or None; applied to the summed terms.
        momentum, epsilon: of the normalisation.
        activation: applied last; None for none.
        kernel_stddev: standard deviation of the initial kernels. None: N(0, 0.01) before a norm;
            without one what keeps the features' mean square, see `kernel_initializer`. Of the two
            or three terms of a level two are counted: most pixels are at the finest level, which
            has two, and up-sampling takes some of the third one's variance away.

    Call arguments:
        pyramid: list of `[N, H_l, W_l, C]` maps, finest first; any number of levels and any sizes,
            each the half, rounded up, of the one before (what a stride-2 convolution gives).
        training: passed to the normalisation.

    Returns:
        list of `[N, H_l, W_l, filters]` maps.

    Raises:
        ValueError: `scale_kernel_size` is neither 1 nor 3, the normalisation is unknown, or the
            size of a level does not follow from the one before.

    Example:
        >>> pconv = PConv(8)
        >>> fine, coarse = pconv([tf.zeros([1, 9, 12, 4]), tf.zeros([1, 5, 6, 4])])

    Source: paper, sections 3.1 to 3.3, equation 2.
    """

    def __init__(
        self,
        filters,
        scale_kernel_size=3,
        deformable=False,
        normalization="integrated",
        momentum=0.9,
        epsilon=1e-5,
        activation="relu",
        kernel_stddev=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if scale_kernel_size not in (1, 3):
            raise ValueError(f"scale_kernel_size must be 1 or 3, got {scale_kernel_size!r}")
        self.filters = filters
        self.scale_kernel_size = scale_kernel_size
        self.deformable = deformable
        self.normalization = normalization
        self.momentum = momentum
        self.epsilon = epsilon
        self.activation = keras.activations.get(activation)
        self.kernel_stddev = kernel_stddev
        self.same = self._conv("same")
        if scale_kernel_size == 3:
            self.coarser = self._conv("coarser")
            self.finer = self._conv("finer", strides=2)
        self.norm = make_normalization(
            normalization,
            momentum=momentum,
            epsilon=epsilon,
            dtype=self.dtype_policy,
            name="norm",
        )

    def _conv(self, name, strides=1):
        terms = 2 if self.scale_kernel_size == 3 else 1
        return ScaleEqualizingConv(
            self.filters,
            strides=strides,
            deformable=self.deformable,
            # One each: an initializer of Keras 3 gives the same numbers again.
            kernel_initializer=kernel_initializer(self.kernel_stddev, self.normalization, terms),
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, pyramid_shape):
        if self.scale_kernel_size == 3:
            _check_sizes(self.name, pyramid_shape)
        self.same.build(pyramid_shape)
        if self.scale_kernel_size == 3:
            self.coarser.build(pyramid_shape)
            self.finer.build(pyramid_shape)
        if self.norm is not None:
            self.norm.build(self.compute_output_shape(pyramid_shape))
        self.built = True

    def call(self, pyramid, training=None):
        outputs = [self._sum_terms(pyramid, level) for level in range(len(pyramid))]
        if self.norm is not None:
            outputs = self.norm(outputs, training=training)
        return [self.activation(y) for y in outputs]

    def _sum_terms(self, pyramid, level):
        deform = level > 0
        y = self.same.convolve(pyramid[level], deform)
        if self.scale_kernel_size == 3 and level > 0:
            y += self.finer.convolve(pyramid[level - 1], deform)
        if self.scale_kernel_size == 3 and level < len(pyramid) - 1:
            top_down = self.coarser.convolve(pyramid[level + 1], deform)
            shape = tf.shape(y)
            y += resize_bilinear_align_corners(top_down, (shape[1], shape[2]))
        return y

    def compute_output_shape(self, pyramid_shape):
        return [(*tuple(shape)[:-1], self.filters) for shape in pyramid_shape]

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "scale_kernel_size": self.scale_kernel_size,
            "deformable": self.deformable,
            "normalization": self.normalization,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "activation": keras.activations.serialize(self.activation),
            "kernel_stddev": self.kernel_stddev,
        }


def _check_sizes(name, pyramid_shape):
    sizes = [tuple(shape)[1:3] for shape in pyramid_shape]
    for finer, coarser in itertools.pairwise(sizes):
        for n, got in zip(finer, coarser):
            if None not in (n, got) and got != (n + 1) // 2:
                raise ValueError(
                    f"{name}: each level must have half the size, rounded up, of the one before; "
                    f"got (height, width) {sizes}"
                )
