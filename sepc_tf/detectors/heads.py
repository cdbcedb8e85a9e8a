"""The final convolutions of a dense detector."""

import math

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="sepc_tf")
class PredictionHead(keras.layers.Layer):
    """One 3x3 convolution for the class scores and one for the boxes, shared by all levels.

    Kernels start as N(0, 0.01); the classification bias at `-ln((1 - prior) / prior)`, so that
    every score starts as `prior`.

    Sublayers: `classification`, `box`.

    Args:
        num_classes: number K of object classes, without background.
        num_anchors: anchors A of one cell.
        box_activation: None or "relu", on the box output.
        box_bias: initial bias of the box convolution.
        prior: initial score.

    Call arguments:
        inputs: `(cls_pyramid, box_pyramid)`, two lists of `[B, H_l, W_l, C]` maps.

    Returns:
        dict of `classification`, list of `[B, H_l, W_l, A * K]` float32 logits (channel a * K + c),
        and `box`, list of `[B, H_l, W_l, A * 4]` float32.

    Raises:
        ValueError: a count is below 1, or an unknown activation.

    Example:
        >>> features = [tf.zeros([1, 8, 8, 16]), tf.zeros([1, 4, 4, 16])]
        >>> PredictionHead(num_classes=3, num_anchors=9)((features, features))["box"][0].shape
        TensorShape([1, 8, 8, 36])

    Source: RetinaNet (arXiv 1708.02002), section 4.1.
    """

    def __init__(
        self, num_classes, num_anchors, box_activation=None, box_bias=0.0, prior=0.01, **kwargs
    ):
        super().__init__(**kwargs)
        if num_classes < 1 or num_anchors < 1:
            raise ValueError(
                "num_classes and num_anchors must be at least 1; got "
                f"num_classes={num_classes}, num_anchors={num_anchors}"
            )
        if box_activation not in (None, "relu"):
            raise ValueError(f'box_activation must be None or "relu"; got {box_activation!r}')
        self.num_classes = num_classes
        self.num_anchors = num_anchors
        self.box_activation = box_activation
        self.box_bias = box_bias
        self.prior = prior
        bias = -math.log((1 - prior) / prior)
        dtype = self.dtype_policy
        self.classification = final_conv("classification", num_anchors * num_classes, bias, dtype)
        self.box = final_conv("box", num_anchors * 4, box_bias, dtype)

    def build(self, input_shape):
        cls_shape, box_shape = input_shape
        self.classification.build(tuple(cls_shape[0]))
        self.box.build(tuple(box_shape[0]))
        self.built = True

    def call(self, inputs):
        cls_pyramid, box_pyramid = inputs
        box = [tf.cast(self.box(x), tf.float32) for x in box_pyramid]
        return {
            "classification": [tf.cast(self.classification(x), tf.float32) for x in cls_pyramid],
            "box": [tf.nn.relu(x) for x in box] if self.box_activation else box,
        }

    def compute_output_shape(self, input_shape):
        cls_shapes, box_shapes = input_shape
        classes, sides = self.num_anchors * self.num_classes, self.num_anchors * 4
        return {
            "classification": [(*tuple(shape)[:-1], classes) for shape in cls_shapes],
            "box": [(*tuple(shape)[:-1], sides) for shape in box_shapes],
        }

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "num_anchors": self.num_anchors,
            "box_activation": self.box_activation,
            "box_bias": self.box_bias,
            "prior": self.prior,
        }


def final_conv(name, filters, bias, dtype):
    """A 3x3 convolution that ends a head: its kernel starts as N(0, 0.01), its bias at `bias`."""
    return keras.layers.Conv2D(
        filters,
        3,
        padding="same",
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=keras.initializers.Constant(bias),
        dtype=dtype,
        name=name,
    )
