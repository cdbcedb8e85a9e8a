import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.layers import (
    IndependentBatchNormalization,
    IntegratedBatchNormalization,
    SingleBatchNormalization,
)
from sepc_tf.layers.pyramid_normalization import make_normalization

NORMS = [IntegratedBatchNormalization, SingleBatchNormalization, IndependentBatchNormalization]


def random_pyramid(batch=2, channels=3, sizes=((5, 4), (3, 2), (1, 1)), seed=0):
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal([batch, *size, channels]) * (i + 1) + i).astype(np.float32)
        for i, size in enumerate(sizes)
    ]


def randomised(norm, pyramid):
    """Builds the norm and gives every variable a value of its own."""
    norm.build([x.shape for x in pyramid])
    rng = np.random.default_rng(3)
    for variable in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance):
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    return norm


def flat(x):
    return x.reshape(-1, x.shape[-1]).astype(np.float64)


def normalise(x, pixels, gamma, beta, epsilon=1e-5):
    mean, variance = pixels.mean(axis=0), pixels.var(axis=0)
    return np.asarray(gamma) * (x - mean) / np.sqrt(variance + epsilon) + np.asarray(beta)


def test_integrated_statistics_are_those_of_all_pixels():
    pyramid = random_pyramid()
    norm = randomised(IntegratedBatchNormalization(), pyramid)
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    pixels = np.concatenate([flat(x) for x in pyramid])
    for x, y in zip(pyramid, norm(pyramid, training=True)):
        np.testing.assert_allclose(y, normalise(x, pixels, norm.gamma, norm.beta), atol=1e-5)
    np.testing.assert_allclose(norm.moving_mean, 0.9 * mean + 0.1 * pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        norm.moving_variance, 0.9 * variance + 0.1 * pixels.var(axis=0, ddof=1), rtol=1e-6
    )


@pytest.mark.parametrize("cls", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_float64_maps_are_normalised_in_float64(cls, training):
    pyramid = [x.astype(np.float64) + 10.0 for x in random_pyramid()]
    norm = randomised(cls(dtype="float64"), pyramid)
    variables = [np.float64(v) for v in (norm.gamma, norm.beta, norm.moving_mean,
                                         norm.moving_variance)]  # fmt: skip
    pixels = np.concatenate([flat(x) for x in pyramid])
    outputs = norm(pyramid, training=training)
    for level, (x, y) in enumerate(zip(pyramid, outputs)):
        gamma, beta, mean, variance = (v[level] if v.ndim == 2 else v for v in variables)
        if training:
            of = pixels if cls is IntegratedBatchNormalization else flat(x)
            mean, variance = of.mean(axis=0), of.var(axis=0)
        want = gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta
        assert y.dtype == tf.float64
        np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-9)


def test_single_normalises_each_level_and_updates_in_turn():
    pyramid = random_pyramid(sizes=((5, 4), (3, 2)))
    norm = randomised(SingleBatchNormalization(momentum=0.8), pyramid)
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    for x, y in zip(pyramid, norm(pyramid, training=True)):
        np.testing.assert_allclose(y, normalise(x, flat(x), norm.gamma, norm.beta), atol=1e-5)
        mean = 0.8 * mean + 0.2 * flat(x).mean(axis=0)
        variance = 0.8 * variance + 0.2 * flat(x).var(axis=0, ddof=1)
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-5)


def test_independent_has_everything_once_per_level():
    pyramid = random_pyramid(sizes=((5, 4), (3, 2)))
    norm = randomised(IndependentBatchNormalization(), pyramid)
    assert norm.gamma.shape == (2, 3)
    mean = norm.moving_mean.numpy()
    for i, (x, y) in enumerate(zip(pyramid, norm(pyramid, training=True))):
        np.testing.assert_allclose(y, normalise(x, flat(x), norm.gamma[i], norm.beta[i]), atol=1e-5)
        mean[i] = 0.9 * mean[i] + 0.1 * flat(x).mean(axis=0)
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-5)


@pytest.mark.parametrize("cls", NORMS)
def test_inference_and_frozen_layers_use_the_running_statistics(cls):
    pyramid = random_pyramid()
    norm = randomised(cls(), pyramid)
    before = {path: v.numpy() for path, v in named_variables(norm).items()}
    expected = norm(pyramid, training=False)
    gamma, mean = (np.atleast_2d(before[name])[-1] for name in ("gamma", "moving_mean"))
    beta, variance = (np.atleast_2d(before[name])[-1] for name in ("beta", "moving_variance"))
    np.testing.assert_allclose(
        expected[-1], gamma * (pyramid[-1] - mean) / np.sqrt(variance + 1e-5) + beta, atol=1e-5
    )
    norm.trainable = False
    for a, b in zip(norm(pyramid, training=True), expected):
        np.testing.assert_array_equal(a, b)
    for path, variable in named_variables(norm).items():
        np.testing.assert_array_equal(variable, before[path])


def test_a_large_mean_does_not_cost_the_variance():
    # E[x^2] - E[x]^2 in float32 would lose every digit here.
    pyramid = [x + 1e4 for x in random_pyramid()]
    pixels = np.concatenate([flat(x) for x in pyramid])
    norm = IntegratedBatchNormalization(momentum=0.0)
    norm(pyramid, training=True)
    np.testing.assert_allclose(norm.moving_variance, pixels.var(axis=0, ddof=1), rtol=1e-4)


@pytest.mark.parametrize("cls", NORMS)
def test_gradients_equal_finite_differences(cls):
    pyramid = random_pyramid(sizes=((3, 2), (2, 1)))
    norm = randomised(cls(), pyramid)
    rng = np.random.default_rng(5)
    cotangents = [rng.standard_normal(x.shape).astype(np.float32) for x in pyramid]

    def loss(pyramid):
        return tf.add_n(
            [tf.reduce_sum(y * c) for y, c in zip(norm(pyramid, training=True), cotangents)]
        )

    tensors = [tf.constant(x) for x in pyramid]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = loss(tensors)
    gradients = tape.gradient(value, tensors)
    for level, index in ((0, (0, 1, 0, 2)), (0, (1, 2, 1, 0)), (1, (1, 0, 0, 1))):
        step = 1e-2
        up, down = ([x.copy() for x in pyramid] for _ in range(2))
        up[level][index] += step
        down[level][index] -= step
        slope = (loss(up) - loss(down)) / (2 * step)
        np.testing.assert_allclose(gradients[level][index], slope, rtol=2e-2, atol=2e-3)


def _values(variables):
    """What a gradient tape takes: Keras 3 variables wrap the TensorFlow ones."""
    return [v.value if hasattr(v, "path") else v for v in variables]


def differentiate(norm, pyramid, cotangents):
    """Outputs, and gradients of `sum(y cotangent)` for the maps and for gamma and beta."""
    with tf.GradientTape() as tape:
        tape.watch(pyramid)
        outputs = norm(pyramid, training=True)
        loss = tf.add_n([tf.reduce_sum(y * c) for y, c in zip(outputs, cotangents)])
    return outputs, *tape.gradient(loss, [pyramid, _values(norm.trainable_variables)])


def differentiate_on(strategy, norm, parts, cotangents):
    """`differentiate`, with `parts[r]` and `cotangents[r]` on replica r.

    Returns:
        outputs and gradients of the maps, each a list of levels of lists of replicas; the gradients
        of gamma and beta summed over the replicas.
    """
    # Shapes may differ between the replicas; the lists travel as one per-replica structure.
    levels, cots = (
        [
            strategy.experimental_distribute_values_from_function(
                lambda context, level=level, values=values: tf.constant(
                    values[context.replica_id_in_sync_group][level]
                )
            )
            for level in range(len(parts[0]))
        ]
        for values in (parts, cotangents)
    )

    @tf.function
    def step(levels, cots):
        return strategy.run(lambda x, c: differentiate(norm, x, c), args=(levels, cots))

    results = tf.nest.map_structure(
        lambda value: [x.numpy() for x in strategy.experimental_local_results(value)],
        step(levels, cots),
    )
    outputs, gradients, parameters = results
    return outputs, gradients, [sum(replicas) for replicas in parameters]


@pytest.mark.parametrize("cls", NORMS)
def test_two_replicas_equal_the_global_batch(cls, two_replicas):
    # The replicas see images of different sizes, so their pixel counts differ.
    sizes = [((5, 4), (3, 2)), ((3, 6), (2, 3))]
    parts = [random_pyramid(sizes=s, seed=i) for i, s in enumerate(sizes)]
    parts = [[x + 20.0 * i for x in part] for i, part in enumerate(parts)]
    rng = np.random.default_rng(7)
    cotangents = [[rng.standard_normal(x.shape).astype(np.float32) for x in p] for p in parts]
    with two_replicas.scope():
        norm = randomised(cls(), parts[0])
    outputs, gradients, parameters = differentiate_on(two_replicas, norm, parts, cotangents)

    # One device: the pixels of both replicas side by side, as one image of one row.
    single = randomised(cls(), parts[0])
    joined, joined_cotangents = (
        [
            tf.constant(np.concatenate([flat(x) for x in level])[None, None].astype(np.float32))
            for level in zip(*values)
        ]
        for values in (parts, cotangents)
    )
    expected, expected_grads, expected_parameters = differentiate(single, joined, joined_cotangents)
    for level in range(2):
        for got, want in ((outputs, expected), (gradients, expected_grads)):
            got = np.concatenate([flat(part) for part in got[level]])
            np.testing.assert_allclose(got, flat(want[level].numpy()), rtol=1e-4, atol=2e-5)
    for got, want in zip(parameters, expected_parameters):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    for name in ("moving_mean", "moving_variance"):
        for copy in two_replicas.experimental_local_results(getattr(norm, name)):
            np.testing.assert_allclose(copy, getattr(single, name), rtol=1e-5)


def normalisation_by_hand(pixels, cotangents, gamma, beta, epsilon=1e-5):
    """Outputs and gradients `[P, C]`, gradients of gamma and beta `[C]`, by the derivative."""
    centred = pixels - pixels.mean(axis=0)
    inverse = 1.0 / np.sqrt(np.square(centred).mean(axis=0) + epsilon)
    unit = centred * inverse
    gradient = cotangents - cotangents.mean(axis=0) - unit * (cotangents * unit).mean(axis=0)
    return (
        gamma * unit + beta,
        gamma * inverse * gradient,
        (cotangents * unit).sum(axis=0),
        cotangents.sum(axis=0),
    )


@pytest.mark.parametrize("images", [(2, 2), (3, 1), (2, 0)], ids=["equal", "unequal", "one empty"])
@pytest.mark.parametrize("mean", [300.0, 3000.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_large_mean_does_not_cost_two_replicas_the_variance(dtype, mean, images, two_replicas):
    # Channels: two of unit deviation, one constant, one that is constant on each replica.
    rng = np.random.default_rng(0)
    sizes = ((13, 11), (7, 6))
    parts, cotangents = (
        [[rng.standard_normal([n, *size, 4]).astype(np.float32) for size in sizes] for n in images]
        for _ in range(2)
    )
    for replica, part in enumerate(parts):
        for x in part:
            x += mean
            x[..., 2] = 1.1 * mean
            x[..., 3] = mean + replica
    pixels, cots = (
        np.concatenate([flat(x) for part in values for x in part]) for values in (parts, cotangents)
    )
    with two_replicas.scope():
        norm = randomised(IntegratedBatchNormalization(dtype=dtype), parts[0])
    before = {path: np.float64(v) for path, v in named_variables(norm).items()}
    cast = [[[x.astype(dtype) for x in part] for part in values] for values in (parts, cotangents)]
    outputs, gradients, (gamma_gradient, beta_gradient) = differentiate_on(
        two_replicas, norm, *cast
    )

    y, gradient, *parameters = normalisation_by_hand(pixels, cots, before["gamma"], before["beta"])
    # A float32 mean is itself off by 6e-8 of its value.
    tolerance = 1e-9 if dtype == "float64" else 4e-7 * mean
    order = [(level, replica) for replica in range(2) for level in range(2)]
    for got, want in ((outputs, y), (gradients, gradient)):
        got = np.concatenate([flat(got[level][replica]) for level, replica in order])
        np.testing.assert_allclose(got / np.abs(want).max(0), want / np.abs(want).max(0),
                                   rtol=0, atol=tolerance)  # fmt: skip
    for got, want in zip((gamma_gradient, beta_gradient), parameters):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())
    rtol = 1e-12 if dtype == "float64" else 1e-6
    for copy in two_replicas.experimental_local_results(norm.moving_mean):
        want = 0.9 * before["moving_mean"] + 0.1 * pixels.mean(axis=0)
        np.testing.assert_allclose(copy, want, rtol=rtol)
    for copy in two_replicas.experimental_local_results(norm.moving_variance):
        want = 0.9 * before["moving_variance"] + 0.1 * pixels.var(axis=0, ddof=1)
        np.testing.assert_allclose(copy, want, rtol=rtol)


def test_two_replicas_give_the_slopes_of_finite_differences(two_replicas):
    rng = np.random.default_rng(4)
    parts = [[rng.standard_normal([n, 2, 3, 2]) + 50.0] for n in (2, 1)]
    cotangents = [[rng.standard_normal(x.shape) for x in part] for part in parts]
    with two_replicas.scope():
        norm = randomised(IntegratedBatchNormalization(dtype="float64"), parts[0])

    def run(parts):
        outputs, gradients, _ = differentiate_on(two_replicas, norm, parts, cotangents)
        loss = sum(np.sum(y * c[0]) for y, c in zip(outputs[0], cotangents))
        return loss, gradients[0]

    _, gradients = run(parts)
    for replica, index in ((0, (1, 0, 2, 1)), (1, (0, 1, 1, 0))):
        step, losses = 1e-5, []
        for sign in (1, -1):
            moved = [[x.copy() for x in part] for part in parts]
            moved[replica][0][index] += sign * step
            losses.append(run(moved)[0])
        slope = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(gradients[replica][index], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("cls", NORMS)
def test_a_float64_layer_is_float64_throughout(cls):
    # Values and gradients that float32 cannot hold: 1 + 1e-9 would be 1.
    norm = cls(dtype="float64")
    pyramid = [x.astype(np.float64) for x in random_pyramid(sizes=((5, 4), (3, 2)))]
    norm.build([x.shape for x in pyramid])
    assert {tf.as_dtype(v.dtype) for v in named_variables(norm).values()} == {tf.float64}
    norm.gamma.assign(np.full(norm.gamma.shape, 1.0 + 1e-9))
    assert np.all(np.asarray(norm.gamma) != 1.0)
    rng = np.random.default_rng(1)
    cotangents = [rng.standard_normal(x.shape) for x in pyramid]
    _, gradients, parameters = differentiate(norm, [tf.constant(x) for x in pyramid], cotangents)
    if cls is IntegratedBatchNormalization:
        groups = [(np.concatenate([flat(x) for x in pyramid]),
                   np.concatenate([flat(c) for c in cotangents]))]  # fmt: skip
    else:
        groups = [(flat(x), flat(c)) for x, c in zip(pyramid, cotangents)]
    by_hand = [normalisation_by_hand(x, c, 1.0 + 1e-9, 0.0) for x, c in groups]
    want = np.concatenate([x for _, x, _, _ in by_hand])
    got = np.concatenate([flat(g.numpy()) for g in gradients])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    combine = np.stack if cls is IndependentBatchNormalization else sum
    for i, got in enumerate(parameters, start=2):
        np.testing.assert_allclose(got, combine([g[i] for g in by_hand]), rtol=0, atol=1e-11)


def test_mixed_precision_keeps_variables_and_statistics_in_float32():
    norm = IntegratedBatchNormalization(dtype="mixed_bfloat16")
    outputs = norm([tf.ones([2, 4, 4, 3], tf.bfloat16) * 300.0], training=True)
    assert outputs[0].dtype == tf.bfloat16
    assert {tf.as_dtype(v.dtype) for v in named_variables(norm).values()} == {tf.float32}
    np.testing.assert_allclose(norm.moving_mean, 30.0, rtol=1e-5)


@pytest.mark.parametrize("cls", NORMS)
def test_config_round_trip_in_a_functional_model(cls, tmp_path):
    inputs = [keras.Input((None, None, 3)), keras.Input((None, None, 3))]
    model = keras.Model(inputs, cls(momentum=0.7, epsilon=1e-3, name="norm")(inputs))
    pyramid = random_pyramid(sizes=((4, 4), (2, 2)))
    model(pyramid, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("norm").momentum == 0.7
    for a, b in zip(model(pyramid), loaded(pyramid)):
        np.testing.assert_array_equal(a, b)


def test_errors_say_what_was_expected():
    norm = IntegratedBatchNormalization()
    norm(random_pyramid())
    with pytest.raises(ValueError, match="must have 3 levels, got 2"):
        norm(random_pyramid(sizes=((4, 4), (2, 2))))
    with pytest.raises(ValueError, match="same known number of channels"):
        IntegratedBatchNormalization().build([(1, 4, 4, 3), (1, 2, 2, 4)])
    with pytest.raises(ValueError, match=r"one of \['integrated', 'single', 'independent'\]"):
        make_normalization("group")


@pytest.mark.parametrize("cls", NORMS)
def test_compiled_training_step(cls):
    pyramid = random_pyramid(sizes=((5, 4), (3, 2)))
    eager, compiled = (randomised(cls(), pyramid) for _ in range(2))
    expected = eager(pyramid, training=True)
    got = tf.function(lambda *x: compiled(list(x), training=True), jit_compile=True)(*pyramid)
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(getattr(compiled, name), getattr(eager, name), rtol=1e-5)
