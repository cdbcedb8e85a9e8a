"""Backbones of KerasCV."""

from __future__ import annotations

from typing import Any

import keras

NORMS = ("frozen", "eval", "sync")


@keras.saving.register_keras_serializable(package="sepc_tf")
class KerasCVFeatures(keras.layers.Layer):
    """C3, C4 and C5 of a KerasCV backbone.

    Args:
        model: KerasCV backbone with `pyramid_level_inputs`, of dynamic image size
            (`input_shape=(None, None, 3)`).
        frozen_stages: -1: nothing is frozen; s = 0 to 4: every layer up to the map C(s + 1), of
            stride 2^(s + 1), never trains and uses its running statistics.
        norm: of all other batch norms: "frozen": running statistics, nothing trains; "eval":
            running statistics, gamma and beta train; "sync": batch statistics over all replicas.

    Call arguments:
        images: `[B, H, W, 3]`, scaled as the backbone expects.
        training: whether "sync" norms use batch statistics.

    Returns:
        list of three maps of strides 8, 16 and 32.

    Raises:
        ValueError: the backbone has no such level, or an unknown norm.

    Example:
        >>> import keras_cv
        >>> backbone = keras_cv.models.ResNetBackbone(
        ...     stackwise_filters=[8, 8, 8, 8], stackwise_blocks=[1, 1, 1, 1],
        ...     stackwise_strides=[1, 2, 2, 2], block_type="block", include_rescaling=False,
        ...     input_shape=(None, None, 3))
        >>> [c.shape[1] for c in KerasCVFeatures(backbone)(tf.zeros([1, 64, 64, 3]))]
        [8, 4, 2]
    """

    def __init__(
        self, model: keras.Model, frozen_stages: int = -1, norm: str = "eval", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
        wanted = ["P3", "P4", "P5"]
        if frozen_stages >= 0:
            wanted.insert(0, f"P{frozen_stages + 1}")
        levels = model.pyramid_level_inputs
        missing = [level for level in wanted if level not in levels]
        if missing:
            hint = f" (frozen_stages={frozen_stages} freezes up to {wanted[0]})"
            raise ValueError(
                f"the backbone has no level {', '.join(missing)}; got {list(levels)}"
                + (hint if frozen_stages >= 0 else "")
            )
        self.frozen_stages = frozen_stages
        self.norm = norm
        self._backbone_config = keras.saving.serialize_keras_object(model)
        # A bound method is not tracked: the layers below must have one owner only.
        self.load_backbone_weights = model.load_weights
        maps = [model.get_layer(levels[level]).output for level in wanted]
        self.model = keras.Model(model.inputs, maps[-3:], name="model")
        frozen = keras.Model(model.inputs, maps[0]).layers if frozen_stages >= 0 else []
        for layer in self.model._flatten_layers(include_self=False):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = norm != "frozen"
                layer.synchronized = norm == "sync"
                if norm == "sync" and getattr(layer, "fused", False):
                    layer.fused = False  # Keras 2: the fused operation knows no other replicas
        for layer in frozen:
            layer.trainable = False

    def build(self, input_shape):
        self.built = True

    def call(self, images, training=None):
        return self.model(images, training=training if self.norm == "sync" else False)

    def compute_output_shape(self, input_shape):
        return [tuple(output.shape) for output in self.model.outputs]

    def get_config(self):
        return {
            **super().get_config(),
            "model": self._backbone_config,
            "frozen_stages": self.frozen_stages,
            "norm": self.norm,
        }

    @classmethod
    def from_config(cls, config):
        model = keras.saving.deserialize_keras_object(config.pop("model"))
        return cls(model, **config)
