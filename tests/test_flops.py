import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.backbones import ResNet
from sepc_tf.config import HeadConfig
from sepc_tf.detectors import PredictionHead
from sepc_tf.flops import (
    PAPER_FUSION_GFLOPS,
    PAPER_GFLOPS,
    Cost,
    count_layer,
    count_operations,
    format_costs,
)
from sepc_tf.layers import (
    DeformConv2D,
    GroupNormalization,
    IntegratedBatchNormalization,
    PConv,
    ScaleEqualizingConv,
    SymmetricConv2D,
)
from sepc_tf.necks import FPN, SEPC, ConvTowers
from sepc_tf.ops.pooling import adaptive_max_pool
from sepc_tf.ops.resize import resize_bilinear, resize_bilinear_align_corners, resize_nearest
from sepc_tf.zoo import build_necks, build_towers

pytestmark = pytest.mark.same_on_both_stacks


def built(layer, shapes):
    layer.build(shapes)
    return layer


def pyramid(height, width, channels=256, num_levels=5):
    """Shapes of P3 to P7 for an image of this size."""
    shapes = []
    for level in range(3, 3 + num_levels):
        shapes.append((1, -(-height // 2**level), -(-width // 2**level), channels))
    return shapes


def test_single_operations_by_hand():
    shape = (1, 9, 12, 8)
    conv = count_layer(built(SymmetricConv2D(16, 3, strides=2), shape), shape)
    assert conv == Cost(9 * 8 * 5 * 6 * 16 + 5 * 6 * 16, 9 * 8 * 16 + 16)
    grouped = count_layer(built(SymmetricConv2D(16, 3, groups=4, use_bias=False), shape), shape)
    assert grouped == Cost(9 * 2 * 9 * 12 * 16, 9 * 2 * 16)
    deformable = count_layer(built(DeformConv2D(16, 3, use_bias=False), shape), shape)
    plain, offsets = 9 * 8 * 9 * 12 * 16, 9 * 8 * 9 * 12 * 18 + 9 * 12 * 18
    assert deformable.multiply_adds == plain + offsets + 8 * 9 * 8 * 9 * 12
    norm = count_layer(built(IntegratedBatchNormalization(), [shape]), [shape])
    assert norm == Cost(2 * 9 * 12 * 8, 16)
    norm = count_layer(built(GroupNormalization(groups=4), shape), shape)
    assert norm == Cost(2 * 9 * 12 * 8, 16)


X = (1, 9, 12, 8)
KERNEL = tf.ones([1] * 5)


@pytest.mark.parametrize(
    ("layer", "shape", "multiply_adds"),
    [
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), X, (9 + 1) * 7 * 10 * 16),
        (keras.layers.DepthwiseConv2D(3, strides=2, padding="same"), X, (9 + 1) * 5 * 6 * 8),
        (keras.layers.SeparableConv2D(16, 3, use_bias=False), X, 7 * 10 * (9 * 8 + 8 * 16)),
        (keras.layers.Conv2DTranspose(16, 2, strides=2, use_bias=False), X, 9 * 12 * 4 * 8 * 16),
        (keras.layers.Conv2DTranspose(16, 4, strides=2, padding="same"), X,
         9 * 12 * 16 * 8 * 16 + 18 * 24 * 16),
        (keras.layers.Conv2D(16, 3, dilation_rate=2, use_bias=False), X, 9 * 8 * 5 * 8 * 16),
        (keras.layers.Dense(10), (1, 40), 40 * 10 + 10),
        (keras.layers.Dense(10, use_bias=False), (1, 7, 40), 7 * 40 * 10),
        (keras.layers.AveragePooling2D(3), X, 9 * 12 * 8),
        (keras.layers.MaxPooling2D(2), X, 9 * 12 * 8),
        (keras.layers.GlobalAveragePooling2D(), X, 9 * 12 * 8),
        (keras.layers.GlobalMaxPooling2D(), X, 9 * 12 * 8),
        (keras.layers.BatchNormalization(), X, 2 * 9 * 12 * 8),
        (keras.layers.ReLU(), X, 9 * 12 * 8),
        (keras.layers.ReLU(6.0), X, 9 * 12 * 8),
        (keras.layers.Activation("silu"), X, 9 * 12 * 8),
        (keras.layers.Activation("sigmoid"), X, 0),
        (keras.layers.ZeroPadding2D(2), X, 0),
        (keras.layers.UpSampling2D(2), X, 0),
        (keras.layers.UpSampling2D(2, interpolation="bilinear"), X, 0),
    ],
)  # fmt: skip
def test_keras_layers_by_hand(layer, shape, multiply_adds):
    assert counted(built(layer, shape).call, shape) == multiply_adds


def counted(function, *shapes):
    specs = [tf.TensorSpec(shape) for shape in shapes]
    traced = tf.function(lambda *inputs: function(*inputs), autograph=False)
    return count_operations(traced.get_concrete_function(*specs).graph)


@pytest.mark.parametrize("resize", [resize_bilinear, resize_bilinear_align_corners, resize_nearest])
def test_a_resize_is_no_dense_layer(resize):
    kernel = tf.Variable(tf.ones([8, 5]))
    assert counted(lambda x: resize(x, (4, 30)), X) == 0
    assert counted(lambda x: tf.matmul(x, kernel), X) == 9 * 12 * 8 * 5
    assert counted(lambda x: tf.matmul(kernel, x, True, True), (12, 8)) == 5 * 8 * 12
    assert counted(lambda x: tf.matmul(resize(x, (4, 30)), kernel), X) == 4 * 30 * 8 * 5
    assert counted(lambda x, y: tf.matmul(x, y), (6, 7), (7, 3)) == 6 * 7 * 3


def test_adaptive_pooling_by_hand():
    # Windows of 3 rows at each of 5 (9 / 5 is no whole number), then of 3 columns at each of 4.
    assert counted(lambda x: adaptive_max_pool(x, (5, 4)), X) == (5 * 3 * 12 + 5 * 4 * 3) * 8


def test_products_of_maps():
    per_channel, scale = tf.Variable(tf.ones([8])), tf.Variable(1.0)
    elements = 9 * 12 * 8
    assert counted(lambda x: (x - per_channel) * per_channel + per_channel, X) == 2 * elements
    assert counted(lambda x: x * scale, X) == elements
    assert counted(lambda x, gate: x * gate, X, (1, 1, 1, 8)) == elements
    assert counted(lambda x: 0.5 * x + x, X) == 0
    assert counted(lambda x: x * x, (100, 4)) == 0  # boxes


def test_what_parameters_and_shapes_alone_give_is_not_counted():
    kernel = tf.Variable(tf.ones([3, 3, 8, 2]))

    def standardised(x):
        mean, variance = tf.nn.moments(kernel, [0, 1, 2])
        x = tf.nn.conv2d(x, (kernel - mean) * tf.math.rsqrt(variance), 1, "SAME")
        return x, tf.linalg.matmul(tf.eye(tf.shape(x)[1]), tf.eye(9))

    assert counted(standardised, X) == 9 * 8 * 9 * 12 * 2


def test_functions_that_are_called_are_counted():
    kernel = tf.Variable(tf.ones([3, 3, 8, 2]))

    @tf.function
    def inner(x, kernel):
        return tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")), tf.shape(x)[1]

    @tf.function
    def outer(x):
        y, height = inner(x, kernel)
        return tf.matmul(tf.eye(height), y[0, :, :, 0])  # the matrix is made of a shape

    assert counted(lambda x: outer(outer(x)[tf.newaxis, :, :, tf.newaxis] + x), X) == 2 * (
        9 * 8 * 9 * 12 * 2 + 9 * 12 * 2
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: tf.nn.conv3d(x[..., None], KERNEL, [1] * 5, "SAME"), "Conv3D: operations of"),
        (lambda x: tf.einsum("nhwc,nhwd->ncd", x, x), "of type Einsum are not counted"),
        (lambda x: tf.while_loop(lambda y: True, tf.nn.relu, [x]), "of type StatelessWhile are"),
        (tf.function(lambda x: tf.linalg.svd(x, compute_uv=False)), "of type Svd are not counted"),
    ],
)
def test_an_operation_in_no_list_is_an_error(function, message):
    with pytest.raises(ValueError, match=message):
        counted(function, X)


def test_a_shape_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match=r"cannot be counted with a shape .*None"):
        counted(lambda x: tf.nn.relu(tf.nn.relu(x)), (1, None, 12, 8))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ResNetBackbone", {"stackwise_filters": [8, 16], "stackwise_blocks": [2, 2],
                            "stackwise_strides": [1, 2]}),
        ("ResNetV2Backbone", {"stackwise_filters": [8, 16], "stackwise_blocks": [2, 2],
                              "stackwise_strides": [1, 2]}),
        ("DenseNetBackbone", {"stackwise_num_repeats": [1, 2], "growth_rate": 8}),
        ("CSPDarkNetBackbone", {"stackwise_channels": [8, 16, 24, 32],
                                "stackwise_depth": [1, 1, 2, 1]}),
        ("CSPDarkNetBackbone", {"stackwise_channels": [8, 16, 24, 32], "use_depthwise": True,
                                "stackwise_depth": [1, 1, 2, 1]}),
    ],
)  # fmt: skip
def test_backbones_of_kerascv_layer_by_layer(name, options, monkeypatch):
    backbone = getattr(keras_cv.models, name)(
        include_rescaling=False, input_shape=(64, 96, 3), **options
    )
    call, calls = keras.layers.Layer.__call__, []

    def recorded(layer, *args, **kwargs):
        outputs = call(layer, *args, **kwargs)
        calls.append((layer, args, outputs))
        return outputs

    monkeypatch.setattr(keras.layers.Layer, "__call__", recorded)
    cost = count_layer(backbone, (1, 64, 96, 3))
    monkeypatch.undo()
    convolutions = expected = 0
    for layer, args, y in calls:
        kind = type(layer).__name__
        if kind in ("Conv2D", "DepthwiseConv2D"):
            kernel, *bias = layer.weights
            pixels, convolutions = y.shape[1] * y.shape[2], convolutions + 1
            expected += pixels * (np.prod(kernel.shape) + (y.shape[3] if bias else 0))
        elif kind == "BatchNormalization":
            expected += 2 * np.prod(y.shape)
        elif kind in ("Activation", "ReLU", "Lambda"):  # ReLU and SiLU
            expected += np.prod(y.shape)
        elif kind in ("MaxPooling2D", "AveragePooling2D"):
            expected += np.prod(args[0].shape)
    assert convolutions >= 8
    assert cost.multiply_adds == expected
    assert cost.parameters == sum(np.prod(v.shape) for v in backbone.trainable_variables)


def ratio(layer, reference, shapes):
    costs = [count_layer(built(x, shapes), shapes).multiply_adds for x in (layer, reference)]
    return costs[0] / costs[1]


def test_ratios_of_appendix_1():
    shapes = pyramid(1280, 1280)
    options = {"normalization": None, "activation": None}
    stack = ratio(PConv(256, **options), PConv(256, scale_kernel_size=1, **options), shapes)
    assert stack == pytest.approx(1.4985, abs=5e-4)
    heads = ratio(SEPC.variant("pconv"), ConvTowers(), shapes)
    assert heads == pytest.approx(0.99925, abs=5e-4)
    extra = ratio(ScaleEqualizingConv(256), ScaleEqualizingConv(256, deformable=False), shapes)
    assert extra - 1 == pytest.approx(0.025, abs=5e-4)


@pytest.fixture(scope="module")
def shared_parts():
    """Multiply-adds of what all RetinaNet rows have in common: ResNet-50, FPN, final head."""
    image = (1, 800, 1280, 3)
    backbone = built(ResNet(50), image)
    features = backbone.compute_output_shape(image)[1:]
    shapes = pyramid(800, 1280)
    head = PredictionHead(80, 9)
    head.build((shapes, shapes))
    costs = {
        "backbone": count_layer(backbone, image),
        "fpn": count_layer(built(FPN(), features), features),
        "head": count_layer(head, (shapes, shapes)),
    }
    # torchvision's ResNet-50 without fc
    assert costs["backbone"].parameters == 25_557_032 - 2_049_000
    return {name: cost.multiply_adds for name, cost in costs.items()}


@pytest.mark.parametrize("variant", list(PAPER_GFLOPS["retinanet"]))
def test_rows_of_table_1(shared_parts, variant):
    shapes = pyramid(800, 1280)
    towers = built(build_towers(HeadConfig(variant=variant)), shapes)
    total = (sum(shared_parts.values()) + count_layer(towers, shapes).multiply_adds) / 1e9
    # Only SEPC differs by more than the rounding of the table (and the DCN head, 0.05).
    tolerance = {"sepc": 0.005, "dcn": 0.0005}.get(variant, 0.00005)
    assert total == pytest.approx(PAPER_GFLOPS["retinanet"][variant], rel=tolerance)


@pytest.mark.parametrize("row", list(PAPER_FUSION_GFLOPS))
def test_necks_of_table_2(shared_parts, row):
    """Beside the FPN, whose row is checked above: 0.3% of the whole, and Libra as explained."""
    configs, _, figure = PAPER_FUSION_GFLOPS[row]
    necks = build_necks([dict(config) for config in configs], 256)
    first = getattr(necks[0], "min_level", 3)
    shapes = [(1, 800 // 2**level, 1280 // 2**level, 64 * 2**level) for level in range(first, 6)]
    cost = 0
    for neck in necks:
        cost += count_layer(built(neck, shapes), shapes).multiply_adds
        shapes = neck.compute_output_shape(shapes)
    added = (cost - shared_parts["fpn"]) / 1e9
    if row == "Libra":
        # Four 1x1 convolutions and two products of matrices on P4 (docs/results/flops.md).
        pixels = 50 * 80
        assert added == pytest.approx((4 * pixels * 256**2 + 2 * pixels**2 * 256) / 1e9, rel=0.01)
    else:
        assert added == pytest.approx(figure - 239.32, abs=0.003 * figure)


def test_format():
    text = format_costs({"backbone": Cost(2_500_000_000, 1000), "head": Cost(500_000_000, 24)})
    assert text.splitlines()[-1].split() == ["total", "3.00", "1,024"]
    assert np.all([len(line) == 34 for line in text.splitlines()])
