import keras
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.backbones import ResNet
from sepc_tf.backbones.resnet import BackboneNormalization
from sepc_tf.checkpoints.variables import named_variables

RNG = np.random.default_rng(0)


def images(height=65, width=97):
    return tf.constant(RNG.standard_normal([2, height, width, 3]).astype(np.float32))


@pytest.mark.parametrize(
    ("depth", "options", "expected"),
    [
        # torchvision's totals without the classifier fc
        (18, {}, 11_689_512 - 513_000),
        (34, {}, 21_797_672 - 513_000),
        (50, {}, 25_557_032 - 2_049_000),
        (101, {}, 44_549_160 - 2_049_000),
        (101, {"groups": 64, "base_width": 4}, 83_455_272 - 2_049_000),
    ],
)
def test_number_of_parameters(depth, options, expected):
    backbone = ResNet(depth, frozen_stages=-1, **options)
    backbone.build((None, None, None, 3))
    assert sum(np.prod(v.shape) for v in backbone.trainable_weights) == expected


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 31)])
def test_shapes(depth, size):
    backbone = ResNet(depth, width=8)
    features = backbone(images(*size))
    expansion = 1 if depth == 18 else 4
    assert [tuple(x.shape) for x in features] == [
        (2, -(-size[0] // s), -(-size[1] // s), 8 * 2**i * expansion)
        for i, s in enumerate(backbone.strides)
    ]
    assert backbone.compute_output_shape((2, *size, 3)) == [tuple(x.shape) for x in features]


@pytest.mark.parametrize(("style", "strides"), [("pytorch", [1, 2, 1]), ("caffe", [2, 1, 1])])
def test_where_the_stride_of_a_bottleneck_sits(style, strides):
    backbone = ResNet(50, width=8, style=style)
    features = backbone(images(33, 31))
    block = next(b for b in backbone.blocks if b.name == "layer2_0")
    assert [conv.strides for conv in block.convs] == strides
    expected = backbone.compute_output_shape((2, 33, 31, 3))
    assert [tuple(x.shape) for x in features] == expected
    assert ResNet.from_config(backbone.get_config()).style == style


@pytest.mark.parametrize(("depth", "style"), [(18, "caffe"), (50, "tf")])
def test_a_style_that_is_unknown_or_without_effect(depth, style):
    with pytest.raises(ValueError, match=f"style must be one of .* got '{style}' and depth"):
        ResNet(depth, style=style)


def test_frozen_stages_stay_frozen_whatever_the_owner_sets():
    backbone = ResNet(18, width=8, frozen_stages=1, norm="sync")
    backbone(images())
    backbone.trainable = False
    backbone.trainable = True
    trainable = {path for path, v in named_variables(backbone).items() if v.trainable}
    assert not any(path.startswith(("conv1", "bn1", "layer1")) for path in trainable)
    assert {"layer2_0/conv1/kernel", "layer4_1/bn2/gamma"} <= trainable
    before = {path: v.numpy() for path, v in named_variables(backbone).items()}
    backbone(images(), training=True)
    changed = {
        path for path, v in named_variables(backbone).items() if np.any(v.numpy() != before[path])
    }
    assert changed and all("/moving_" in path for path in changed)
    assert not any(path.startswith(("bn1", "layer1")) for path in changed)


@pytest.mark.parametrize("mode", ["frozen", "eval", "sync"])
def test_norm_modes(mode):
    x = tf.constant(RNG.standard_normal([2, 4, 5, 3]).astype(np.float32)) * 2 + 1
    norm = BackboneNormalization(mode)
    norm.build(x.shape)
    mean, variance = np.float32([0.5, 1, 1.5]), np.float32([1, 4, 9])
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(variance)
    running = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(norm(x, training=False), running, atol=1e-5)
    trained = norm(x, training=True)
    if mode == "sync":
        pixels = np.reshape(x, [-1, 3])
        expected = (x - pixels.mean(0)) / np.sqrt(pixels.var(0) + 1e-5)
        np.testing.assert_allclose(trained, expected, atol=1e-5)
        np.testing.assert_allclose(norm.moving_mean, 0.9 * mean + 0.1 * pixels.mean(0), rtol=1e-5)
    else:
        np.testing.assert_allclose(trained, running, atol=1e-5)
        np.testing.assert_array_equal(norm.moving_mean, mean)
    assert len(norm.trainable_weights) == (0 if mode == "frozen" else 2)


@pytest.mark.parametrize("mode", ["frozen", "eval", "sync"])
@pytest.mark.parametrize("training", [True, False])
def test_norm_modes_in_float64(mode, training):
    x = RNG.standard_normal([2, 4, 5, 3]) + 1000.0
    norm = BackboneNormalization(mode, dtype="float64")
    norm.build(x.shape)
    variance = np.array([1.0, 4.0, 9.0])
    norm.moving_mean.assign(np.full(3, 1000.0))
    norm.moving_variance.assign(variance)
    mean = 1000.0
    if mode == "sync" and training:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = norm(x, training=training)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), rtol=0, atol=1e-11)


def test_a_float64_network_is_the_float32_one():
    image = images()
    single, double = (ResNet(18, width=8, frozen_stages=0, dtype=d) for d in ("float32", "float64"))
    want = single(image)
    double.build(image.shape)
    for path, variable in named_variables(double).items():
        variable.assign(named_variables(single)[path].numpy().astype(np.float64))
    for got, expected in zip(double(tf.cast(image, tf.float64)), want):
        assert got.dtype == tf.float64
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_gradients_of_the_running_statistics_form():
    x = tf.constant(RNG.standard_normal([2, 4, 5, 3]).astype(np.float32))
    norm = BackboneNormalization("eval")
    norm.build(x.shape)
    norm.moving_variance.assign(np.float32([1, 4, 9]))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(norm(x, training=True) ** 2)
    grad_x, grad_gamma, grad_beta = tape.gradient(loss, [x, *_values(norm.trainable_weights)])
    scale = 1 / np.sqrt(np.float32([1, 4, 9]) + 1e-5)
    np.testing.assert_allclose(grad_x, 2 * x * scale**2, atol=1e-5)
    np.testing.assert_allclose(grad_gamma, np.sum(2 * (x * scale) ** 2, (0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(grad_beta, np.sum(2 * x * scale, (0, 1, 2)), rtol=1e-4, atol=1e-3)


def _values(variables):
    """What a gradient tape takes: Keras 3 variables wrap the TensorFlow ones."""
    return [v.value if hasattr(v, "path") else v for v in variables]


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 18, "deformable_stages": (5,)},
        {"depth": 50, "deformable_stages": (4, 5)},
        {"depth": 50, "groups": 4, "base_width": 16, "frozen_stages": -1, "norm": "sync"},
        {"depth": 50, "groups": 4, "base_width": 16, "deformable_stages": (5,)},
    ],
)
def test_round_trip_and_training_of_variants(options, tmp_path):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, ResNet(width=8, name="backbone", **options)(inputs))
    x = images(33, 40)
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.reduce_sum(y**2) for y in model(x, training=True)])
    gradients = tape.gradient(loss, model.trainable_weights)
    assert all(np.isfinite(g).all() for g in gradients)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(model(x), loaded(x)):
        np.testing.assert_array_equal(a, b)


def test_deformable_stages_start_as_plain_ones():
    plain, deformable = ResNet(50, width=8), ResNet(50, width=8, deformable_stages=(3, 4, 5))
    x = images()
    plain(x), deformable(x)
    targets = named_variables(deformable)
    for path, variable in named_variables(plain).items():
        targets[path].assign(variable.numpy())
    assert sum("offset" in path for path in targets) == 2 * (4 + 6 + 3)
    for a, b in zip(plain(x), deformable(x)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(tf.reduce_max(a)))


def test_mixed_precision():
    features = ResNet(18, width=8, frozen_stages=-1, norm="sync", dtype="mixed_bfloat16")(
        tf.cast(images(), tf.bfloat16), training=True
    )
    assert {x.dtype for x in features} == {tf.bfloat16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 42}, r"depth must be one of \[18, 34, 50, 101\], got 42"),
        ({"norm": "group"}, "norm must be one of .* got 'group'"),
        ({"depth": 18, "groups": 2}, "need bottlenecks"),
        ({"frozen_stages": 5}, "frozen_stages must be from -1 to 4, got 5"),
        ({"deformable_stages": (1,)}, "deformable_stages must be among 2, 3, 4, 5"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)
