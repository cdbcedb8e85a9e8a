"""The function that other runtimes run: one padded image to candidates for suppression."""

from __future__ import annotations

import tensorflow as tf

from sepc_tf.detectors import RPN, DenseDetector, Detector
from sepc_tf.errors import UserError
from sepc_tf.export.folding import folded
from sepc_tf.ops.deform_conv2d import portable_ops

try:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
except ImportError as error:
    raise ImportError(
        f"export uses a private name of TensorFlow, and TensorFlow {tf.__version__} lacks it: "
        f"{error}. Install one of the versions that sepc-tf was tested with, 2.15 or 2.21"
    ) from error

OUTPUTS = ("boxes", "scores")


def candidates(detector: Detector, image_size: tuple[int, int]):
    """A detector up to suppression, for one image of one size, without variables or loops.

    Batch norms are folded into the convolutions, and deformable convolutions are in the unrolled
    form; all shapes are known.

    Args:
        detector: a built dense detector.
        image_size: height and width of the padded image, multiples of 32.

    Returns:
        A `tf.Module` with a `tf.function` `run`, from `images` `[1, H, W, 3]` float32, normalised
        and padded, and `image_sizes` `[1, 2]` int32, height and width without padding, to `boxes`
        `[1, N, 4]` float32 xyxy in pixels, clipped to the image, and `scores` `[1, N, K]` float32.

    Raises:
        UserError: the detector is a two-stage one.

    Example:
        >>> detector = RetinaNet.from_parts(
        ...     ResNet(18, width=8), FPN(16), SEPC.variant("sepc_lite", filters=16), num_classes=3)
        >>> frozen(candidates(detector, (64, 96))).outputs[0].shape
        TensorShape([1, 1161, 4])
    """
    if not isinstance(detector, DenseDetector) or isinstance(detector, RPN):
        raise UserError(
            f"{type(detector).__name__} can only be exported with --format saved_model: its second "
            "stage works on as many proposals as there are, and other formats need known sizes"
        )
    return _Candidates(folded(detector), image_size)


class _Candidates(tf.Module):
    def __init__(self, detector, image_size):
        super().__init__()
        self.detector = detector
        signature = [
            tf.TensorSpec([1, *image_size, 3], tf.float32, "images"),
            tf.TensorSpec([1, 2], tf.int32, "image_sizes"),
        ]
        self.run = tf.function(self._run, input_signature=signature, autograph=False)

    def _run(self, images, image_sizes):
        with portable_ops("unrolled"):
            outputs = self.detector(images, training=False)
            boxes, scores = self.detector.scored_boxes(outputs, image_sizes)
        return dict(zip(OUTPUTS, (boxes, scores)))


def frozen(module: tf.Module):
    """The concrete function of `candidates` with its weights as constants."""
    return convert_variables_to_constants_v2(module.run.get_concrete_function())
