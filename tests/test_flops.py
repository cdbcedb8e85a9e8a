import numpy as np
import pytest

from sepc_tf.backbones import ResNet
from sepc_tf.config import HeadConfig
from sepc_tf.detectors import PredictionHead
from sepc_tf.flops import PAPER_GFLOPS, Cost, count_layer, format_costs
from sepc_tf.layers import (
    DeformConv2D,
    IntegratedBatchNormalization,
    PConv,
    ScaleEqualizingConv,
    SymmetricConv2D,
)
from sepc_tf.necks import FPN, SEPC, ConvTowers
from sepc_tf.zoo import build_towers


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
    costs = [
        count_layer(backbone, image),
        count_layer(built(FPN(), features), features),
        count_layer(head, (shapes, shapes)),
    ]
    assert costs[0].parameters == 25_557_032 - 2_049_000  # torchvision's ResNet-50 without fc
    return sum(cost.multiply_adds for cost in costs)


@pytest.mark.parametrize("variant", list(PAPER_GFLOPS["retinanet"]))
def test_rows_of_table_1(shared_parts, variant):
    shapes = pyramid(800, 1280)
    towers = built(build_towers(HeadConfig(variant=variant)), shapes)
    total = (shared_parts + count_layer(towers, shapes).multiply_adds) / 1e9
    # Only SEPC differs by more than the rounding of the table (and the DCN head, 0.05).
    tolerance = {"sepc": 0.005, "dcn": 0.0005}.get(variant, 0.00005)
    assert total == pytest.approx(PAPER_GFLOPS["retinanet"][variant], rel=tolerance)


def test_format():
    text = format_costs({"backbone": Cost(2_500_000_000, 1000), "head": Cost(500_000_000, 24)})
    assert text.splitlines()[-1].split() == ["total", "3.00", "1,024"]
    assert np.all([len(line) == 34 for line in text.splitlines()])
