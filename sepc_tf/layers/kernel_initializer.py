"""What the convolutions of a head start from."""

from __future__ import annotations

import keras

PAPER_STDDEV = 0.01  # RetinaNet's, which the paper keeps; made for 256 channels


def kernel_initializer(
    stddev: float | None, normalization: str | None, terms: int = 1
) -> keras.initializers.Initializer:
    """The initial kernels of a convolution that a ReLU follows.

    N(0, 0.01) hands on a tenth of the features' standard deviation at 16 channels and half of it at
    256, per layer: in a narrow head without norms nothing is left after four. Where no norm follows
    the kernels are therefore N(0, s), with

        s = sqrt(2 / (fan_in * terms)),    fan_in = kernel height * width * input channels

    so that the mean square of the features stays as it is (the 2 is for the half that the ReLU cuts
    off). A norm makes the scale of its input immaterial, and the kernels before it N(0, 0.01).

    Args:
        stddev: the standard deviation of the kernels; None for the rule above.
        normalization: what stands between the convolution and its ReLU; None for nothing.
        terms: convolutions whose outputs are summed.

    Returns:
        A Keras initializer.

    Example:
        >>> kernel = kernel_initializer(None, None, terms=2)([3, 3, 64, 64])
        >>> round(float(np.std(kernel)), 3), round((2 / (9 * 64 * 2)) ** 0.5, 3)
        (0.042, 0.042)

    Source: He et al. (arXiv 1502.01852), section 2.2; the paper's N(0, 0.01): RetinaNet (arXiv
    1708.02002), section 4.1.
    """
    if stddev is None and normalization is None:
        return keras.initializers.VarianceScaling(
            2.0 / terms, mode="fan_in", distribution="untruncated_normal"
        )
    return keras.initializers.RandomNormal(stddev=PAPER_STDDEV if stddev is None else stddev)
