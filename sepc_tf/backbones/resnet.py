"""ResNet and ResNeXt with the semantics of torchvision and mmdetection."""

import keras
import tensorflow as tf

from sepc_tf.layers.deform_conv import DeformConv2D
from sepc_tf.layers.pyramid_normalization import IntegratedBatchNormalization
from sepc_tf.layers.symmetric_conv2d import SymmetricConv2D
from sepc_tf.ops.conv2d import conv2d_output_shape

NUM_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
NORMS = ("frozen", "eval", "sync")
STYLES = ("pytorch", "caffe")


@keras.saving.register_keras_serializable(package="sepc_tf")
class BackboneNormalization(IntegratedBatchNormalization):
    """Batch norm of one map `[N, H, W, C]`, in one of three modes.

    Args:
        mode: "frozen": running statistics, nothing trains. "eval": running statistics, never
            updated; gamma and beta train. "sync": batch statistics over all replicas in training.
        momentum, epsilon: as in `IntegratedBatchNormalization`.

    Example:
        >>> BackboneNormalization("sync")(tf.ones([1, 4, 4, 8]), training=True).shape
        TensorShape([1, 4, 4, 8])
    """

    def __init__(self, mode="sync", **kwargs):
        super().__init__(**kwargs)
        if mode not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {mode!r}")
        self.mode = mode

    def build(self, input_shape):
        super().build([input_shape])

    def _add_vector(self, name, shape, initializer, trainable):
        trainable = trainable and self.mode != "frozen"
        return super()._add_vector(name, shape, initializer, trainable)

    def call(self, x, training=None):
        batch_statistics = bool(training) and self.trainable and self.mode == "sync"
        if batch_statistics or x.dtype == tf.float64:  # the operation below has no float64 form
            return super().call([x], training=batch_statistics)[0]
        # The fused op in inference form: one pass over the map, merged with the convolution.
        # The raw op, because tf.nn's wrapper raises epsilon to 1.001e-5.
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.convert_to_tensor(self.moving_mean),
            variance=tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=False,
        ).y

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "mode": self.mode}


class ResNetBlock(keras.layers.Layer):
    """A residual block: `relu(body(x) + shortcut(x))`.

    Bottleneck: 1x1 to `width` channels, 3x3 (grouped, perhaps deformable), 1x1 to `filters`; the
    stride is that of the 3x3, in `style` "caffe" of the first 1x1. Basic: two 3x3 of `filters`
    channels, the first strided. The shortcut is a strided 1x1 convolution where the shape changes
    (`project`). A norm follows every convolution, a ReLU all but the last. Sublayers are named as
    torchvision's: `conv1`, `bn1`, ..., `downsample_conv`, `downsample_bn`.
    """

    def __init__(
        self,
        filters,
        width,
        strides,
        project,
        bottleneck,
        groups,
        deformable,
        style,
        norm,
        frozen,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self._norm = "frozen" if frozen else norm
        self._frozen = frozen
        if bottleneck:
            first, second = (strides, 1) if style == "caffe" else (1, strides)
            self.convs = [
                self._conv("conv1", width, 1, first),
                self._conv("conv2", width, 3, second, groups, deformable),
                self._conv("conv3", filters, 1),
            ]
        else:
            self.convs = [
                self._conv("conv1", filters, 3, strides),
                self._conv("conv2", filters, 3, deformable=deformable),
            ]
        self.norms = [self._bn(f"bn{i + 1}") for i in range(len(self.convs))]
        self.downsample_conv = self.downsample_bn = None
        if project:
            self.downsample_conv = self._conv("downsample_conv", filters, 1, strides)
            self.downsample_bn = self._bn("downsample_bn")

    def _conv(self, name, filters, kernel_size, strides=1, groups=1, deformable=False):
        options = {
            "strides": strides,
            "padding": (kernel_size - 1) // 2,
            "groups": groups,
            "use_bias": False,
            "kernel_initializer": _kaiming_normal(),
            "dtype": self.dtype_policy,
            "name": name,
        }
        if deformable:
            return DeformConv2D(filters, kernel_size, trainable=not self._frozen, **options)
        return SymmetricConv2D(filters, kernel_size, frozen=self._frozen, **options)

    def _bn(self, name):
        return BackboneNormalization(self._norm, dtype=self.dtype_policy, name=name)

    def build(self, input_shape):
        if self.downsample_conv is not None:
            self.downsample_conv.build(input_shape)
            self.downsample_bn.build(self.downsample_conv.compute_output_shape(input_shape))
        shape = tuple(input_shape)
        for conv, norm in zip(self.convs, self.norms):
            conv.build(shape)
            shape = tuple(conv.compute_output_shape(shape))
            norm.build(shape)
        self.built = True

    def call(self, x, training=None):
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            y = norm(conv(y), training=training)
            if i < len(self.convs) - 1:
                y = tf.nn.relu(y)
        if self.downsample_conv is not None:
            x = self.downsample_bn(self.downsample_conv(x), training=training)
        return tf.nn.relu(y + x)

    def compute_output_shape(self, input_shape):
        return conv2d_output_shape(input_shape, self.filters, 3, self.strides, 1)


@keras.saving.register_keras_serializable(package="sepc_tf")
class ResNet(keras.layers.Layer):
    """ResNet-18/34/50/101 and ResNeXt; images -> [C2, C3, C4, C5] at strides 4, 8, 16, 32.

    Padding is symmetric everywhere (max pooling too), convolutions have no bias, batch norm has
    epsilon 1e-5 and momentum 0.9. Weights of torchvision and mmdetection load by
    `sepc_tf.checkpoints`.

    Sublayers: `conv1`, `bn1`, and for stage 1 to 4 and block 0, 1, ... `layer<stage>_<block>`.

    Args:
        depth: 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
        width: channels after the stem, 64 in the published networks; everything scales with it.
        groups, base_width: ResNeXt: groups of the 3x3 convolution of a bottleneck and channels of
            each at the first stage (for width 64); 64 and 4 for ResNeXt-101-64x4d. The default,
            1 and 64, is ResNet.
        deformable_stages: C levels whose 3x3 convolutions (the second one of a basic block) are
            deformable, e.g. (3, 4, 5).
        style: where the stride of a bottleneck is: "pytorch" in its 3x3 convolution, "caffe" in its
            first 1x1 (as in the original networks).
        frozen_stages: -1: nothing is frozen, 0: the stem, 1: the stem and stage 1 (C2), ....
            Frozen convolutions and norms never train, their running statistics are used.
        norm: mode of all other norms, "frozen", "eval" or "sync"; see `BackboneNormalization`.

    Call arguments:
        images: `[N, H, W, 3]`, normalised; any H and W.
        training: passed to the norms.

    Returns:
        list [C2, C3, C4, C5] of `[N, ceil(H / s), ceil(W / s), C]` for the strides s.

    Raises:
        ValueError: an unknown depth, style, stage or norm; groups or "caffe" with basic blocks.

    Example:
        >>> c2, c3, c4, c5 = ResNet(18, width=16)(tf.zeros([1, 64, 96, 3]))

    Source: He et al. 2015 (arXiv 1512.03385); Xie et al. 2016 (arXiv 1611.05431).
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        depth=50,
        width=64,
        groups=1,
        base_width=64,
        deformable_stages=(),
        style="pytorch",
        frozen_stages=1,
        norm="eval",
        **kwargs,
    ):
        super().__init__(**kwargs)
        bottleneck = depth >= 50
        if depth not in NUM_BLOCKS:
            raise ValueError(f"depth must be one of {[*NUM_BLOCKS]}, got {depth!r}")
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
        if not bottleneck and (groups, base_width) != (1, 64):
            raise ValueError(
                f"groups and base_width need bottlenecks (depth 50 or 101), got depth {depth}"
            )
        if style not in STYLES or (style == "caffe" and not bottleneck):
            raise ValueError(
                f'style must be one of {STYLES}, "caffe" with bottlenecks (depth 50 or 101) only; '
                f"got {style!r} and depth {depth}"
            )
        if not -1 <= frozen_stages <= 4:
            raise ValueError(f"frozen_stages must be from -1 to 4, got {frozen_stages!r}")
        if not set(deformable_stages) <= {2, 3, 4, 5}:
            raise ValueError(
                f"deformable_stages must be among 2, 3, 4, 5 (C levels), got {deformable_stages!r}"
            )
        self.depth = depth
        self.width = width
        self.groups = groups
        self.base_width = base_width
        self.deformable_stages = tuple(deformable_stages)
        self.style = style
        self.frozen_stages = frozen_stages
        self.norm = norm
        stem_frozen = frozen_stages >= 0
        self.conv1 = SymmetricConv2D(
            width,
            7,
            strides=2,
            use_bias=False,
            kernel_initializer=_kaiming_normal(),
            frozen=stem_frozen,
            dtype=self.dtype_policy,
            name="conv1",
        )
        self.bn1 = BackboneNormalization(
            "frozen" if stem_frozen else norm, dtype=self.dtype_policy, name="bn1"
        )
        self.blocks = []
        for stage, num_blocks in enumerate(NUM_BLOCKS[depth], start=1):
            planes = width * 2 ** (stage - 1)
            for block in range(num_blocks):
                self.blocks.append(
                    ResNetBlock(
                        filters=4 * planes if bottleneck else planes,
                        width=planes * base_width // 64 * groups,
                        strides=2 if stage > 1 and block == 0 else 1,
                        project=block == 0 and (stage > 1 or bottleneck),
                        bottleneck=bottleneck,
                        groups=groups,
                        deformable=stage + 1 in self.deformable_stages,
                        style=style,
                        norm=norm,
                        frozen=stage <= frozen_stages,
                        dtype=self.dtype_policy,
                        name=f"layer{stage}_{block}",
                    )
                )

    def build(self, images_shape):
        self.conv1.build(tuple(images_shape))
        shape = self.conv1.compute_output_shape(images_shape)
        self.bn1.build(shape)
        shape = conv2d_output_shape(shape, self.width, 3, 2, 1)
        for block in self.blocks:
            block.build(shape)
            shape = block.compute_output_shape(shape)
        self.built = True

    def call(self, images, training=None):
        x = tf.nn.relu(self.bn1(self.conv1(images), training=training))
        # Zeros stand for the -inf of PyTorch's padding: after ReLU the maximum is the same.
        x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
        blocks = iter(self.blocks)
        features = []
        for num_blocks in NUM_BLOCKS[self.depth]:
            for _ in range(num_blocks):
                x = next(blocks)(x, training=training)
            features.append(x)
        return features

    def compute_output_shape(self, images_shape):
        shape = self.conv1.compute_output_shape(images_shape)
        shape = conv2d_output_shape(shape, self.width, 3, 2, 1)
        blocks = iter(self.blocks)
        shapes = []
        for num_blocks in NUM_BLOCKS[self.depth]:
            for _ in range(num_blocks):
                shape = next(blocks).compute_output_shape(shape)
            shapes.append(shape)
        return shapes

    def get_config(self):
        return {
            **super().get_config(),
            "depth": self.depth,
            "width": self.width,
            "groups": self.groups,
            "base_width": self.base_width,
            "deformable_stages": list(self.deformable_stages),
            "style": self.style,
            "frozen_stages": self.frozen_stages,
            "norm": self.norm,
        }


def _kaiming_normal():
    """PyTorch's `kaiming_normal_(mode="fan_out")`."""
    return keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal"
    )
