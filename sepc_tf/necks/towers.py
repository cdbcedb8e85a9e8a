"""The towers that SEPC replaces: a stack of convolutions for each task."""

import keras

from sepc_tf.layers.deform_conv import DeformConv2D
from sepc_tf.layers.group_normalization import GroupNormalization
from sepc_tf.layers.kernel_initializer import kernel_initializer
from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D


@keras.saving.register_keras_serializable(package="sepc_tf")
class ConvTowers(keras.layers.Layer):
    """Two stacks of 3x3 convolutions with ReLU, each shared by all levels.

    The head of the paper's baselines; with `deformable` every convolution is deformable, on every
    level (the paper's DCN head).

    Sublayers: `cls_conv_0`, `cls_conv_1`, ..., `box_conv_0`, ...; with a norm `cls_norm_0`, ....

    Args:
        filters: channels of every map.
        num_convs: convolutions in each stack.
        deformable: whether they are deformable (DCNv1, offsets start at zero).
        norm: "group" for a `GroupNormalization` between each convolution, which then has no bias,
            and its ReLU (FCOS, RepPoints); None for none.
        kernel_stddev: standard deviation of the initial kernels; None: N(0, 0.01) before a norm,
            without one what keeps the features' mean square, see `kernel_initializer`.

    Call arguments:
        pyramid: list of `[N, H_l, W_l, C]` maps.
        training: accepted, as every neck does; makes no difference.

    Returns:
        `(cls_pyramid, box_pyramid)`, two lists of `[N, H_l, W_l, filters]` maps.

    Raises:
        ValueError: another norm.

    Example:
        >>> cls, box = ConvTowers(8)([tf.zeros([1, 8, 8, 8]), tf.zeros([1, 4, 4, 8])])

    Source: RetinaNet (arXiv 1708.02002), FCOS (arXiv 1904.01355); paper, Table 1 (baseline and DCN
    head).
    """

    def __init__(
        self,
        filters=256,
        num_convs=4,
        deformable=False,
        norm=None,
        kernel_stddev=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm not in (None, "group"):
            raise ValueError(f'norm must be None or "group", got {norm!r}')
        self.filters = filters
        self.num_convs = num_convs
        self.deformable = deformable
        self.norm = norm
        self.kernel_stddev = kernel_stddev
        self.cls_convs = [self._conv(f"cls_conv_{i}") for i in range(num_convs)]
        self.box_convs = [self._conv(f"box_conv_{i}") for i in range(num_convs)]
        norms = range(num_convs if norm else 0)
        self.cls_norms = [self._norm(f"cls_norm_{i}") for i in norms]
        self.box_norms = [self._norm(f"box_norm_{i}") for i in norms]

    def _conv(self, name):
        return (DeformConv2D if self.deformable else SymmetricConv2D)(
            self.filters,
            3,
            padding=1,
            use_bias=self.norm is None,
            kernel_initializer=kernel_initializer(self.kernel_stddev, self.norm),
            dtype=self.dtype_policy,
            name=name,
        )

    def _norm(self, name):
        return GroupNormalization(dtype=self.dtype_policy, name=name)

    def build(self, pyramid_shape):
        for convs in (self.cls_convs, self.box_convs):
            shape = tuple(pyramid_shape[0])
            for conv in convs:
                conv.build(shape)
                shape = (*shape[:-1], self.filters)
        for norm in (*self.cls_norms, *self.box_norms):
            norm.build((*tuple(pyramid_shape[0])[:-1], self.filters))
        self.built = True

    def call(self, pyramid, training=None):
        return (
            self._tower(pyramid, self.cls_convs, self.cls_norms),
            self._tower(pyramid, self.box_convs, self.box_norms),
        )

    def _tower(self, pyramid, convs, norms):
        for i, conv in enumerate(convs):
            pyramid = [conv(x) for x in pyramid]
            if norms:
                pyramid = [norms[i](x) for x in pyramid]
            pyramid = [keras.activations.relu(x) for x in pyramid]
        return pyramid

    def compute_output_shape(self, pyramid_shape):
        shapes = [(*tuple(shape)[:-1], self.filters) for shape in pyramid_shape]
        return shapes, [*shapes]

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "num_convs": self.num_convs,
            "deformable": self.deformable,
            "norm": self.norm,
            "kernel_stddev": self.kernel_stddev,
        }
