"""Pyramid convolution in the backbone of a stock KerasHub RetinaNet (extra `kerashub`, Keras 3).

KerasHub's `RetinaNetObjectDetector` makes its own heads and gives both the same map of each level.
So this is the part of SEPC that both tasks share: the stack of pyramid convolutions, in the place
of the convolutions of the heads. Labels, losses, decoding and NMS stay KerasHub's.
"""

from __future__ import annotations

import keras

try:
    import keras_hub
except ImportError as error:
    raise ImportError(
        "sepc_tf.kerashub needs KerasHub, which needs Keras 3: pip install 'sepc-tf[kerashub]'"
    ) from error

from sepc_tf.layers.pconv import PConv


@keras.saving.register_keras_serializable(package="sepc_tf")
class PConvBackbone(keras_hub.models.FeaturePyramidBackbone):
    """A KerasHub pyramid backbone whose levels have gone through stacked `PConv` modules.

    With `num_convs=4` and one convolution in each head (`pre_logits_num_conv_layers=1`) the
    detector has the combined head of the paper, but for the normalisation of the last convolution.
    Save the detector with `save` and read it with `keras.saving.load_model`; its `from_preset`
    takes only backbones of the class `RetinaNetBackbone`.

    Args:
        backbone: backbone with the levels P3, P4, ... as `pyramid_outputs`, such as
            `keras_hub.models.RetinaNetBackbone`.
        num_convs: number of stacked PConv modules.
        filters: channels of every level. KerasHub's heads have 256.
        deformable: whether the modules are scale-equalising.
        normalization: "integrated", "single", "independent" or None.
        name, dtype: as of any KerasHub backbone.

    Call arguments:
        inputs: `[B, H, W, 3]`, as `backbone` takes them.

    Returns:
        dict from "P3", "P4", ... to `[B, H_l, W_l, filters]`.

    Raises:
        ValueError: the backbone has no pyramid.

    Example:
        >>> encoder = keras_hub.models.ResNetBackbone(
        ...     [64], [7], [64, 128, 256, 512], [2, 2, 2, 2], [1, 2, 2, 2], "basic_block")
        >>> pyramid = keras_hub.models.RetinaNetBackbone(encoder, 3, 7, use_p5=False)
        >>> backbone = PConvBackbone(pyramid, deformable=True)
        >>> detector = keras_hub.models.RetinaNetObjectDetector(
        ...     backbone, num_classes=20, pre_logits_num_conv_layers=1)

    Source: paper, sections 3 and 4.
    """

    def __init__(
        self,
        backbone: keras_hub.models.FeaturePyramidBackbone,
        num_convs: int = 4,
        filters: int = 256,
        deformable: bool = False,
        normalization: str | None = "integrated",
        dtype=None,
        **kwargs,
    ):
        levels = sorted(backbone.pyramid_outputs)
        if not levels:
            raise ValueError(
                "backbone must have pyramid_outputs, as a keras_hub.models.RetinaNetBackbone has; "
                f"got {type(backbone).__name__}"
            )
        image_shape = tuple(backbone.image_shape)
        # Without its size: for images that are not square KerasHub states wrong widths of P6, P7.
        images = keras.layers.Input((None, None, image_shape[-1]), name="images")
        pyramid = backbone(images)
        maps = [pyramid[level] for level in levels]
        for i in range(num_convs):
            maps = PConv(
                filters,
                deformable=deformable,
                normalization=normalization,
                dtype=dtype or backbone.dtype_policy,
                name=f"pconv_{i}",
            )(maps)
        outputs = dict(zip(levels, maps))
        super().__init__(inputs=images, outputs=outputs, dtype=dtype, **kwargs)
        self.backbone = backbone
        self.num_convs = num_convs
        self.filters = filters
        self.deformable = deformable
        self.normalization = normalization
        self.image_shape = image_shape
        self.min_level, self.max_level = (int(levels[i][1:]) for i in (0, -1))
        self.pyramid_outputs = outputs

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_convs": self.num_convs,
            "filters": self.filters,
            "deformable": self.deformable,
            "normalization": self.normalization,
        }

    @classmethod
    def from_config(cls, config):
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        return super().from_config({**config, "backbone": backbone})
