"""Batch normalisation of a feature pyramid: integrated over the levels, single, independent.

All three normalise `y = gamma * (x - mean) / sqrt(variance + epsilon) + beta` per channel; they
differ in which levels share statistics and parameters (paper, Fig. 7):

| layer                           | batch statistics | gamma, beta, running statistics |
|---------------------------------|------------------|---------------------------------|
| `IntegratedBatchNormalization`  | one, all levels  | one                             |
| `SingleBatchNormalization`      | one per level    | one                             |
| `IndependentBatchNormalization` | one per level    | one per level                   |

Under `tf.distribute` with several replicas the batch statistics are those of the global batch.
"""

import keras
import tensorflow as tf

from sepc_tf import compat


class _PyramidNormalization(keras.layers.Layer):
    """What the three norms share. Parameters are `[channels]`, or `[levels, channels]`."""

    integrated = False  # one set of batch statistics for all levels together
    independent = False  # own parameters and running statistics for each level

    def __init__(self, momentum=0.9, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, pyramid_shape):
        channels = {shape[-1] for shape in pyramid_shape}
        if len(channels) != 1 or None in channels:
            raise ValueError(
                f"{self.name}: every level must have the same known number of channels, got shapes "
                f"{[tuple(shape) for shape in pyramid_shape]}"
            )
        self.num_levels = len(pyramid_shape)
        shape = (self.num_levels, *channels) if self.independent else tuple(channels)
        self.gamma = self._add_vector("gamma", shape, "ones", trainable=True)
        self.beta = self._add_vector("beta", shape, "zeros", trainable=True)
        self.moving_mean = self._add_vector("moving_mean", shape, "zeros", trainable=False)
        self.moving_variance = self._add_vector("moving_variance", shape, "ones", trainable=False)
        self.built = True

    def _add_vector(self, name, shape, initializer, trainable):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            trainable=trainable,
            dtype="float64" if self.variable_dtype == "float64" else "float32",
            **compat.float32_weight_options(),
        )

    def call(self, pyramid, training=None):
        if len(pyramid) != self.num_levels:
            raise ValueError(
                f"{self.name}: pyramid must have {self.num_levels} levels, got {len(pyramid)}"
            )
        precision = tf.float64 if pyramid[0].dtype == tf.float64 else tf.float32
        levels = [tf.cast(x, precision) for x in pyramid]
        gammas, betas = (self._per_level(v, precision) for v in (self.gamma, self.beta))
        if training and self.trainable:
            # The fused operation knows neither other replicas nor float64.
            fused = _num_replicas() == 1 and precision == tf.float32
            normalise = _by_batch if fused else _by_global_batch
            groups = [levels] if self.integrated else [[level] for level in levels]
            step = self.num_levels if self.integrated else 1
            outputs, mean, unbiased = normalise(groups, gammas[::step], betas[::step], self.epsilon)
            self._update(self.moving_mean, tf.stop_gradient(mean))
            self._update(self.moving_variance, tf.stop_gradient(unbiased))
        else:
            means = self._per_level(self.moving_mean, precision)
            variances = self._per_level(self.moving_variance, precision)
            outputs = [
                _normalised(x, *arguments, self.epsilon)
                for x, *arguments in zip(levels, means, variances, gammas, betas)
            ]
        return [tf.cast(y, x.dtype) for x, y in zip(pyramid, outputs)]

    def _per_level(self, variable, dtype):
        value = tf.cast(tf.convert_to_tensor(variable), dtype)
        return tf.unstack(value) if self.independent else [value] * self.num_levels

    def _update(self, variable, statistics):
        value = tf.convert_to_tensor(variable)
        statistics = tf.cast(statistics, value.dtype)
        # A single norm sees the levels one after the other, as one layer called on each would.
        for new in [statistics] if self.independent else tf.unstack(statistics):
            value = value * self.momentum + new * (1.0 - self.momentum)
        variable.assign(value)

    def compute_output_shape(self, pyramid_shape):
        return [tuple(shape) for shape in pyramid_shape]

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package="sepc_tf")
class IntegratedBatchNormalization(_PyramidNormalization):
    """Batch normalisation with one set of statistics and parameters over the whole pyramid (iBN).

    `y_l = gamma * (x_l - m) / sqrt(v + epsilon) + beta`, where m and v are taken over all pixels of
    all levels and images (and of all replicas). In training the running statistics become
    `momentum * old + (1 - momentum) * batch`, with the unbiased variance; otherwise they are used.
    With `trainable = False` the running statistics are used and kept, as in Keras.

    Variables: `gamma`, `beta`, `moving_mean`, `moving_variance`, each `[C]`: float64 in a layer of
    dtype "float64", otherwise float32, also under mixed precision.

    Args:
        momentum: weight of the old running statistics (1 minus PyTorch's momentum).
        epsilon: added to the variance.

    Call arguments:
        pyramid: list of `[N, H_l, W_l, C]` maps.
        training: whether batch statistics are used and the running ones updated.

    Returns:
        list of maps of the same shapes and dtypes. The arithmetic is of the type of the variables.

    Example:
        >>> norm = IntegratedBatchNormalization()
        >>> fine, coarse = norm([tf.ones([2, 8, 8, 4]), tf.zeros([2, 4, 4, 4])], training=True)

    Source: paper, section 3.3.
    """

    integrated = True


@keras.saving.register_keras_serializable(package="sepc_tf")
class SingleBatchNormalization(_PyramidNormalization):
    """Batch normalisation with shared parameters, each level by its own batch statistics.

    One ordinary batch norm called on each level in turn: every level updates the same running
    statistics, finest first. Arguments, variables and shapes as `IntegratedBatchNormalization`.

    Example:
        >>> norm = SingleBatchNormalization()
        >>> fine, coarse = norm([tf.ones([2, 8, 8, 4]), tf.zeros([2, 4, 4, 4])], training=True)

    Source: paper, section 5.1.1 and Fig. 7.
    """


@keras.saving.register_keras_serializable(package="sepc_tf")
class IndependentBatchNormalization(_PyramidNormalization):
    """Batch normalisation with own parameters and statistics for each level.

    Arguments and call as `IntegratedBatchNormalization`; the variables are `[levels, C]`, so the
    number of levels is fixed when the layer is built.

    Example:
        >>> norm = IndependentBatchNormalization()
        >>> fine, coarse = norm([tf.ones([2, 8, 8, 4]), tf.zeros([2, 4, 4, 4])], training=True)

    Source: paper, section 5.1.1 and Fig. 7.
    """

    independent = True


NORMALIZATIONS = {
    "integrated": IntegratedBatchNormalization,
    "single": SingleBatchNormalization,
    "independent": IndependentBatchNormalization,
}


def make_normalization(kind, **kwargs):
    """The norm named `kind` ("integrated", "single", "independent"); None for None.

    Raises:
        ValueError: another name.
    """
    if kind is None:
        return None
    if kind not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {[*NORMALIZATIONS]} or None, got {kind!r}")
    return NORMALIZATIONS[kind](**kwargs)


def _num_replicas():
    context = tf.distribute.get_replica_context()  # None while a functional model is put together
    return 1 if context is None else context.num_replicas_in_sync


def _normalised(x, mean, variance, gamma, beta, epsilon):
    return (x - mean) * (gamma * tf.math.rsqrt(variance + epsilon)) + beta


def _by_batch(groups, gammas, betas, epsilon):
    """Normalises by the statistics of this replica; the fused operation is three times faster.

    Args:
        groups: list of lists of `[N, H, W, C]` float32 maps; each list has one set of statistics.
        gammas, betas: list of `[C]`, one for each group.
        epsilon: added to the variance.

    Returns:
        list of maps in order, means `[groups, C]`, unbiased variances `[groups, C]`.
    """
    outputs, means, variances = [], [], []
    for maps, gamma, beta in zip(groups, gammas, betas):
        channels = maps[0].shape[-1]
        pixels = [tf.reshape(x, [1, -1, 1, channels]) for x in maps]
        fused = tf.raw_ops.FusedBatchNormV3(
            x=tf.concat(pixels, axis=1),
            scale=gamma,
            offset=beta,
            mean=[],
            variance=[],
            epsilon=epsilon,
            is_training=True,
        )
        parts = tf.split(fused.y, [tf.shape(x)[1] for x in pixels], axis=1)
        outputs += [
            tf.ensure_shape(tf.reshape(y, tf.shape(x)), x.shape) for x, y in zip(maps, parts)
        ]
        means.append(fused.batch_mean)
        variances.append(fused.batch_variance)
    return outputs, tf.stack(means), tf.stack(variances)


def _by_global_batch(groups, gammas, betas, epsilon):
    """The same by the statistics of all replicas together; see `global_statistics`."""
    mean, variance, count = global_statistics(groups)
    outputs = [
        _normalised(x, mean[i], variance[i], gamma, beta, epsilon)
        for i, (maps, gamma, beta) in enumerate(zip(groups, gammas, betas))
        for x in maps
    ]
    return outputs, mean, variance * (count / tf.maximum(count - 1.0, 1.0))


def global_statistics(groups):
    """Mean and biased variance per channel over groups of maps and over all replicas.

    Each replica takes its own mean and its sum of squares about it, so nothing cancels. ONE
    all-reduce hands the counts n_r, means m_r and squares s_r of every replica r to all; with n the
    sum of the n_r (Chan, Golub and LeVeque 1983)

        m = sum_r n_r m_r / n,    variance = sum_r (s_r + n_r (m_r - m)^2) / n

    tf.distribute differentiates an all-reduce as the all-reduce of the upstream gradients.

    Args:
        groups: list of lists of `[N, H, W, C]` float32 or float64 maps; each list has one set of
            statistics. N may be 0 on some of the replicas.

    Returns:
        mean `[groups, C]`, variance `[groups, C]`, count `[groups, 1]` (pixels in the group).

    Example:
        >>> mean, variance, count = global_statistics([[tf.ones([2, 8, 8, 4])]])
    """
    context = tf.distribute.get_replica_context()
    local = tf.stack([_replica_statistics(maps) for maps in groups])
    # A row for each replica, of which this one fills its own: the sum has them all.
    own_row = tf.one_hot(
        context.replica_id_in_sync_group, context.num_replicas_in_sync, dtype=local.dtype
    )
    rows = context.all_reduce(tf.distribute.ReduceOp.SUM, own_row[:, None, None] * local)
    channels = groups[0][0].shape[-1]
    counts, means, squares = tf.split(rows, [1, channels, channels], axis=2)
    count = tf.reduce_sum(counts, axis=0)
    weights = counts / tf.maximum(count, 1.0)
    about = tf.stop_gradient(tf.reduce_sum(weights * means, axis=0))
    mean = about + tf.reduce_sum(weights * (means - about), axis=0)
    between = tf.reduce_sum(weights * tf.math.squared_difference(means, mean), axis=0)
    variance = tf.reduce_sum(squares, axis=0) / tf.maximum(count, 1.0) + between
    return mean, variance, count


def _replica_statistics(maps):
    """`[1 + 2 C]`: count, means and sums of squares about them, over the pixels of all maps.

    Two passes: the first mean is off by the rounding of a long sum, the second takes that out. The
    statistics do not depend on what they are taken about, so no gradient goes through it.
    """
    count = tf.add_n([tf.cast(tf.size(x[..., 0]), x.dtype) for x in maps])
    divisor = tf.maximum(count, 1.0)
    about = tf.stop_gradient(tf.add_n([tf.reduce_sum(x, axis=[0, 1, 2]) for x in maps]) / divisor)
    deviations = [x - about for x in maps]
    rest = tf.add_n([tf.reduce_sum(d, axis=[0, 1, 2]) for d in deviations]) / divisor
    square = tf.add_n([tf.reduce_sum(tf.square(d), axis=[0, 1, 2]) for d in deviations])
    # Rounding may take the square of a constant channel below 0.
    square = tf.maximum(square - count * tf.square(rest), 0.0)
    return tf.concat([count[None], about + rest, square], axis=0)
