"""SEPC as parts of a stock KerasCV RetinaNet, which its own code trains and saves.

Only the convolutions between backbone and predictions are this package's. Labels, losses, decoding
and NMS stay KerasCV's, with their limits: images of one static size, and a loss that every replica
divides by its own matched anchors and that is then summed over the replicas. For this package's own
training use `sepc_tf.detectors`.
"""

from __future__ import annotations

import math

import keras
import keras_cv

from sepc_tf.necks import FPN, SEPC, ConvTowers
from sepc_tf.necks.sepc import VARIANTS as SEPC_VARIANTS

VARIANTS = ("baseline", "dcn", *SEPC_VARIANTS)
_TASKS = ("classification", "box")


def retinanet_parts(
    num_classes: int,
    variant: str = "sepc",
    filters: int = 256,
    num_convs: int = 4,
    num_anchors: int = 9,
) -> dict[str, keras.layers.Layer]:
    """The three parts that make a stock `keras_cv.models.RetinaNet` one with a SEPC head.

    The feature pyramid is `FPN` and neck together, because integrated batch norm and pyramid
    convolution see all levels, and KerasCV calls its heads on one level at a time. The heads are
    one 3x3 convolution each.

    For mixed precision on both Kerases, make backbone and parts under the mixed policy, and the
    `RetinaNet` itself under float32: with Keras 2, KerasCV's label encoder cannot run in float16.

    Args:
        num_classes: number of object classes, as given to `RetinaNet`.
        variant: "pconv", "pconv_ibn", "sepc_lite", "sepc", or "baseline" and "dcn" for two plain or
            deformable towers.
        filters: channels of the pyramid.
        num_convs: stacked pyramid convolutions, or convolutions of each tower.
        num_anchors: anchors of one cell, the number of `scales` times that of `aspect_ratios` of
            the anchor generator. KerasCV's default has 9.

    Returns:
        dict of `feature_pyramid`, `classification_head` and `box_head`, keyword arguments of
        `keras_cv.models.RetinaNet`. Make new parts for every model, under several replicas in the
        scope of the strategy.

    Raises:
        ValueError: an unknown variant, or a count below 1.

    Example:
        >>> backbone = keras_cv.models.CSPDarkNetBackbone(
        ...     stackwise_channels=[8, 8, 8, 8], stackwise_depth=[1, 1, 1, 1],
        ...     include_rescaling=True, input_shape=(64, 64, 3))
        >>> model = keras_cv.models.RetinaNet(
        ...     backbone=backbone, num_classes=20, bounding_box_format="xyxy",
        ...     **retinanet_parts(num_classes=20, variant="sepc_lite", filters=8, num_convs=1))
        >>> model(tf.zeros([1, 64, 64, 3]))["box"].shape
        TensorShape([1, 774, 4])

    Source: paper, section 4 and Fig. 5b.
    """
    counts = {"num_classes": num_classes, "num_anchors": num_anchors}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {[*VARIANTS]}, got {variant!r}")
    if variant in SEPC_VARIANTS:
        neck = SEPC.variant(variant, filters=filters, num_convs=num_convs, name="neck")
    else:
        neck = ConvTowers(filters, num_convs, deformable=variant == "dcn", name="neck")
    pyramid = FeaturePyramid(FPN(filters, name="fpn"), neck, name="feature_pyramid")
    prior = 0.01  # every score at the start, as in RetinaNet
    return {
        "feature_pyramid": pyramid,
        "classification_head": TaskHead(
            "classification",
            num_anchors * num_classes,
            bias=-math.log((1 - prior) / prior),
            feature_pyramid=keras.saving.serialize_keras_object(pyramid),
            name="classification_head",
        ),
        "box_head": TaskHead("box", num_anchors * 4, name="box_head"),
    }


def load_model(path: str, custom_objects: dict | None = None) -> keras_cv.models.RetinaNet:
    """Reads a model with `retinanet_parts` from a `.keras` file that `model.save` wrote.

    `keras.saving.load_model` cannot: `RetinaNet.get_config` of KerasCV leaves out the feature
    pyramid, and its `from_config` puts a stock one in. The classification head carries the
    pyramid's configuration instead, and here it is put back.

    Args:
        path: the `.keras` file.
        custom_objects: as in `keras.saving.load_model`, for a backbone of your own.

    Returns:
        A stock `keras_cv.models.RetinaNet` with the weights of the saved one, not compiled:
        KerasCV does not restore its losses. Compile it again to train on.

    Raises:
        ValueError: the file has another model in it.

    Example:
        >>> backbone = keras_cv.models.CSPDarkNetBackbone(
        ...     stackwise_channels=[8, 8, 8, 8], stackwise_depth=[1, 1, 1, 1],
        ...     include_rescaling=True, input_shape=(64, 64, 3))
        >>> model = keras_cv.models.RetinaNet(
        ...     backbone=backbone, num_classes=20, bounding_box_format="xyxy",
        ...     **retinanet_parts(num_classes=20, variant="sepc_lite", filters=8, num_convs=1))
        >>> model.save("model.keras")
        >>> load_model("model.keras")(tf.zeros([1, 64, 64, 3]))["box"].shape
        TensorShape([1, 774, 4])
    """
    name = keras.saving.get_registered_name(keras_cv.models.RetinaNet)
    # A scope, because Keras prefers KerasCV's own registration to the argument `custom_objects`.
    with keras.saving.custom_object_scope({**(custom_objects or {}), name: _SavedRetinaNet}):
        model = keras.saving.load_model(path, compile=False)
    if not isinstance(model, keras_cv.models.RetinaNet):
        raise ValueError(
            f"{path}: expected a keras_cv.models.RetinaNet with parts of "
            f"sepc_tf.kerascv.retinanet_parts, got a {type(model).__name__}; read it with "
            "keras.saving.load_model"
        )
    return model


class _SavedRetinaNet:
    """Takes the place of KerasCV's class while a file is read."""

    @staticmethod
    def from_config(config):
        head = config["classification_head"]
        pyramid = head["config"].get("feature_pyramid")
        if pyramid is None:
            raise ValueError(
                "the saved RetinaNet has no parts of sepc_tf.kerascv.retinanet_parts (its "
                f"classification_head is a {head['class_name']}); read it with "
                "keras.saving.load_model"
            )
        pyramid = keras.saving.deserialize_keras_object(pyramid)
        return keras_cv.models.RetinaNet.from_config({**config, "feature_pyramid": pyramid})


@keras.saving.register_keras_serializable(package="sepc_tf")
class FeaturePyramid(keras.layers.Layer):
    """FPN and neck in the place of KerasCV's feature pyramid.

    Args:
        fpn: layer from [C3, C4, C5] to a pyramid.
        neck: layer from a pyramid to `(cls_pyramid, box_pyramid)`.

    Call arguments:
        features: dict of `P3`, `P4` and `P5`, as KerasCV names the backbone's maps,
            each `[B, H_l, W_l, C_l]`.
        training: passed to both.

    Returns:
        list of pairs (cls, box), one for each level, finest first, each `[B, H_l, W_l, filters]`.

    Example:
        >>> pyramid = FeaturePyramid(FPN(8), SEPC.variant("pconv", filters=8, num_convs=1))
        >>> sizes = {"P3": 8, "P4": 4, "P5": 2}
        >>> levels = pyramid({name: tf.zeros([1, n, n, 4]) for name, n in sizes.items()})
        >>> [cls.shape[1] for cls, box in levels]
        [8, 4, 2, 1, 1]
    """

    def __init__(self, fpn: keras.layers.Layer, neck: keras.layers.Layer, **kwargs):
        super().__init__(**kwargs)
        self.fpn = fpn
        self.neck = neck

    def build(self, features_shape):
        maps = [tuple(features_shape[name]) for name in ("P3", "P4", "P5")]
        self.fpn.build(maps)
        self.neck.build(self.fpn.compute_output_shape(maps))
        self.built = True

    def call(self, features, training=None):
        maps = [features[name] for name in ("P3", "P4", "P5")]
        cls, box = self.neck(self.fpn(maps, training=training), training=training)
        return list(zip(cls, box))

    def compute_output_shape(self, features_shape):
        maps = [tuple(features_shape[name]) for name in ("P3", "P4", "P5")]
        return list(zip(*self.neck.compute_output_shape(self.fpn.compute_output_shape(maps))))

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        config = {"fpn": serialize(self.fpn), "neck": serialize(self.neck)}
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config):
        layers = {
            name: keras.saving.deserialize_keras_object(config[name]) for name in ("fpn", "neck")
        }
        return cls(**{**config, **layers})


@keras.saving.register_keras_serializable(package="sepc_tf")
class TaskHead(keras.layers.Layer):
    """The final 3x3 convolution of one task, on its half of a level of `FeaturePyramid`.

    The kernel starts as N(0, 0.01).

    Sublayer: `conv`.

    Args:
        task: "classification" or "box".
        filters: output channels, anchors of a cell times classes or 4.
        bias: initial bias.
        feature_pyramid: configuration of the feature pyramid in front, kept for `load_model`.

    Call arguments:
        features: pair (cls, box) of `[B, H, W, C]` maps.

    Returns:
        `[B, H, W, filters]` in the layer's compute dtype.

    Raises:
        ValueError: an unknown task, or features that are no pair.

    Example:
        >>> head = TaskHead("box", 36)
        >>> head((tf.zeros([1, 4, 4, 8]), tf.zeros([1, 4, 4, 8]))).shape
        TensorShape([1, 4, 4, 36])

    Source: RetinaNet (arXiv 1708.02002), section 4.1.
    """

    def __init__(
        self,
        task: str,
        filters: int,
        bias: float = 0.0,
        feature_pyramid: dict | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if task not in _TASKS:
            raise ValueError(f"task must be one of {[*_TASKS]}, got {task!r}")
        self.task = task
        self.filters = filters
        self.bias = bias
        self._feature_pyramid = feature_pyramid
        self.conv = keras.layers.Conv2D(
            filters,
            3,
            padding="same",
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            bias_initializer=keras.initializers.Constant(bias),
            dtype=self.dtype_policy,
            name="conv",
        )

    def _own(self, pair, what):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(
                f"{self.name} takes the pairs of sepc_tf.kerascv.FeaturePyramid, got {what} "
                f"{pair}. "
                "A model with parts of sepc_tf.kerascv.retinanet_parts is read from a file by "
                "sepc_tf.kerascv.load_model: KerasCV does not save its feature pyramid"
            )
        return pair[_TASKS.index(self.task)]

    def build(self, features_shape):
        self.conv.build(tuple(self._own(features_shape, "shape")))
        self.built = True

    def call(self, features):
        return self.conv(self._own(features, "features"))

    def compute_output_shape(self, features_shape):
        return (*tuple(self._own(features_shape, "shape"))[:-1], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "task": self.task,
            "filters": self.filters,
            "bias": self.bias,
            "feature_pyramid": self._feature_pyramid,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)
