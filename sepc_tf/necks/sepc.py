"""The SEPC neck: stacked pyramid convolutions and one extra convolution for each task."""

import keras
import tensorflow as tf

from sepc_tf.layers.kernel_initializer import kernel_initializer
from sepc_tf.layers.pconv import PConv
from sepc_tf.layers.pyramid_normalization import make_normalization
from sepc_tf.layers.scale_equalizing_conv import ScaleEqualizingConv

VARIANTS = {
    "pconv": {"deformable": False, "extra_deformable": False, "normalization": None},
    "pconv_ibn": {"deformable": False, "extra_deformable": False, "normalization": "integrated"},
    "sepc_lite": {"deformable": False, "extra_deformable": True, "normalization": "integrated"},
    "sepc": {"deformable": True, "extra_deformable": True, "normalization": "integrated"},
}


@keras.saving.register_keras_serializable(package="sepc_tf")
class SEPC(keras.layers.Layer):
    """Scale-equalising pyramid convolution: pyramid -> (class features, box features).

    `num_convs` stacked `PConv` modules, shared by both tasks (the combined head), then for each
    task one more convolution over the levels, normalisation and ReLU.

    Sublayers: `pconv_0`, `pconv_1`, ... (or, when not shared, `cls_pconv_0`, ..., `box_pconv_0`,
    ...), `cls_conv`, `cls_norm`, `box_conv`, `box_norm`.

    Args:
        filters: channels of every map.
        num_convs: number of stacked PConv modules (0 or more).
        deformable: whether the PConv modules are scale-equalising.
        extra_deformable: whether the two extra convolutions are.
        normalization: "integrated", "single", "independent" or None, in every module.
        extra_padding: of the two extra convolutions. "same", or "valid" as in the authors' code:
            the output maps are then 2 pixels smaller in height and width.
        shared: False gives each task its own stack of PConv modules.
        scale_kernel_size: 3, or 1 for PConv modules that see one level at a time (N in the paper).
        kernel_stddev: standard deviation of the initial kernels; None for `PConv`'s rule.

    Call arguments:
        pyramid: list of `[N, H_l, W_l, C]` maps, finest first.
        training: passed to the normalisations.

    Returns:
        `(cls_pyramid, box_pyramid)`, two lists of `[N, H_l', W_l', filters]` maps.

    Example:
        >>> neck = SEPC.variant("sepc_lite", filters=8)
        >>> cls, box = neck([tf.zeros([1, 8, 8, 8]), tf.zeros([1, 4, 4, 8])])

    Source: paper, section 4 and Fig. 5b.
    """

    def __init__(
        self,
        filters=256,
        num_convs=4,
        deformable=False,
        extra_deformable=False,
        normalization="integrated",
        extra_padding="same",
        shared=True,
        scale_kernel_size=3,
        kernel_stddev=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.num_convs = num_convs
        self.deformable = deformable
        self.extra_deformable = extra_deformable
        self.normalization = normalization
        self.extra_padding = extra_padding
        self.shared = shared
        self.scale_kernel_size = scale_kernel_size
        self.kernel_stddev = kernel_stddev
        # One flat list: Keras 2 does not save layers in nested ones.
        self.pconvs = [
            PConv(
                filters,
                scale_kernel_size=scale_kernel_size,
                deformable=deformable,
                normalization=normalization,
                kernel_stddev=kernel_stddev,
                dtype=self.dtype_policy,
                name=f"{prefix}pconv_{i}",
            )
            for prefix in ([""] if shared else ["cls_", "box_"])
            for i in range(num_convs)
        ]
        self.extra_convs, self.extra_norms = [], []
        for task in ("cls", "box"):
            self.extra_convs.append(
                ScaleEqualizingConv(
                    filters,
                    padding=extra_padding,
                    deformable=extra_deformable,
                    kernel_initializer=kernel_initializer(kernel_stddev, normalization),
                    dtype=self.dtype_policy,
                    name=f"{task}_conv",
                )
            )
            if normalization is not None:
                self.extra_norms.append(
                    make_normalization(normalization, dtype=self.dtype_policy, name=f"{task}_norm")
                )

    @classmethod
    def variant(cls, variant, /, **kwargs):
        """One of the paper's four heads: "pconv", "pconv_ibn", "sepc_lite", "sepc".

        Args:
            variant: which one; it sets `deformable`, `extra_deformable` and `normalization`.
            **kwargs: the remaining arguments of `SEPC`.

        Raises:
            ValueError: an unknown name.
        """
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {[*VARIANTS]}, got {variant!r}")
        return cls(**{**VARIANTS[variant], **kwargs})

    def build(self, pyramid_shape):
        for stack in self._stacks():
            inner = [tuple(shape) for shape in pyramid_shape]
            for pconv in stack:
                pconv.build(inner)
                inner = pconv.compute_output_shape(inner)
        for conv in self.extra_convs:
            conv.build(inner)
        for norm in self.extra_norms:
            norm.build(self.extra_convs[0].compute_output_shape(inner))
        self.built = True

    def _stacks(self):
        if self.shared:
            return [self.pconvs]
        return [self.pconvs[: self.num_convs], self.pconvs[self.num_convs :]]

    def call(self, pyramid, training=None):
        cls, box = self.stacked(pyramid, training)
        return self._extra(cls, 0, training), self._extra(box, 1, training)

    def stacked(self, pyramid, training=None):
        """What the two extra convolutions get: a pyramid for each task, the same if shared."""
        if self.extra_padding == "valid":
            pyramid = [*pyramid[:-1], self._checked(pyramid[-1])]
        stacked = []
        for stack in self._stacks():
            features = pyramid
            for pconv in stack:
                features = pconv(features, training=training)
            stacked.append(features)
        return stacked[0], stacked[-1]

    def _checked(self, coarsest):
        """The coarsest map, if the unpadded extra convolutions fit on it."""
        side = self.extra_convs[0].kernel_size
        message = (
            f"the coarsest map must be at least {side} x {side} cells for the unpadded extra "
            f"convolutions (extra_padding='valid', convention mmdet1); on P7 these are images "
            f"above {128 * (side - 1)} pixels on both sides. Larger images, or "
            "extra_padding='same' (convention modern). Height and width:"
        )
        size = coarsest.shape[1:3]
        if None not in size:
            if min(size) < side:
                raise ValueError(f"{message} {tuple(size)}")
            return coarsest
        size = tf.shape(coarsest)[1:3]
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.reduce_min(size) >= side, [message, size])]
        ):
            return tf.identity(coarsest)

    def _extra(self, features, task, training):
        features = self.extra_convs[task](features)
        if self.extra_norms:
            features = self.extra_norms[task](features, training=training)
        return [keras.activations.relu(x) for x in features]

    def compute_output_shape(self, pyramid_shape):
        inner = [(*tuple(shape)[:-1], self.filters) for shape in pyramid_shape]
        shapes = self.extra_convs[0].compute_output_shape(inner)
        return shapes, [*shapes]

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "num_convs": self.num_convs,
            "deformable": self.deformable,
            "extra_deformable": self.extra_deformable,
            "normalization": self.normalization,
            "extra_padding": self.extra_padding,
            "shared": self.shared,
            "scale_kernel_size": self.scale_kernel_size,
            "kernel_stddev": self.kernel_stddev,
        }
