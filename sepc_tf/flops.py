"""Multiply-adds and parameters of a detector, counted in its graph by the rules of the paper."""

import dataclasses

import numpy as np
import tensorflow as tf

from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.ops.deform_conv2d import portable_ops
from sepc_tf.progress import track

# GFLOPs of Table 1, at 3x1280x800: detector type -> variant -> figure.
PAPER_GFLOPS = {
    "retinanet": {
        "baseline": 239.32,
        "dcn": 249.55,
        "pconv": 239.29,
        "pconv_ibn": 239.36,
        "sepc": 242.22,
        "sepc_lite": 240.0,
    },
    "fsaf": {
        "baseline": 205.2,
        "dcn": 215.42,
        "pconv": 205.18,
        "pconv_ibn": 205.25,
        "sepc": 208.11,
        "sepc_lite": 205.88,
    },
    "free_anchor": {
        "baseline": 239.32,
        "dcn": 249.55,
        "pconv": 239.29,
        "pconv_ibn": 239.36,
        "sepc": 242.22,
        "sepc_lite": 240.0,
    },
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a part of a detector takes.

    Attributes:
        multiply_adds: for one image.
        parameters: what can be trained, frozen or not; running statistics are not counted.
    """

    multiply_adds: int
    parameters: int

    def __add__(self, other):
        return Cost(self.multiply_adds + other.multiply_adds, self.parameters + other.parameters)


def count_detector(detector, height=800, width=1280):
    """Counts each part of a detector at one image size.

    Args:
        detector: a built `sepc_tf.detectors.Detector`.
        height, width: of the network's input, in pixels.

    Returns:
        dict from the name of each part, as "backbone", to its `Cost`.

    Example:
        >>> sum(cost.multiply_adds for cost in count_detector(detector).values()) / 1e9

    Source: paper, Table 1 and appendix 1; the rules are those of `count_operations`.
    """
    inputs = detector.part_inputs((1, height, width, 3))
    return {name: count_layer(part, inputs[name]) for name, part in detector.parts.items()}


def count_layer(layer, input_shape):
    """Counts one built layer in inference.

    Args:
        layer: a built Keras layer.
        input_shape: shape, or structure of shapes, of its input; all entries known, batch 1.

    Returns:
        `Cost`.

    Example:
        >>> count_layer(PConv(256), [(1, 100, 160, 256), (1, 50, 80, 256)])
    """
    spec = _map_shapes(lambda shape: tf.TensorSpec(shape, tf.float32), input_shape)
    function = tf.function(lambda inputs: layer(inputs))
    with portable_ops():
        graph = function.get_concrete_function(spec).graph
    parameters = sum(
        int(np.prod(variable.shape))
        for path, variable in named_variables(layer).items()
        if not path.split("/")[-1].startswith("moving_")
    )
    return Cost(count_operations(graph), parameters)


def count_operations(graph):
    """Multiply-adds of the operations of a traced graph with known shapes.

    - convolution: `C_in k_h k_w H W C_out` (with groups, C_in of one group);
    - deformable convolution: the same, and `8 C_in k_h k_w H W` for the bilinear samples (its
      offsets come from a convolution counted as such): `1 + (8 + 2 k_h k_w) / C_out` in all;
    - bias and ReLU 1 for each element, batch norm 2, max pooling 1 for each element it reads.

    Residual and top-down additions, resizing and padding are not counted. These are the rules of
    mmdetection's counter, which the paper used, and of the paper's appendix 1.
    """
    total = 0
    for operation in graph.get_operations():
        kind, inputs = operation.type, operation.inputs
        if kind == "Conv2D":
            total += _convolution(inputs[1].shape, operation.outputs[0].shape)
        elif kind.endswith("PartitionedCall") and _is_deformable(inputs):
            output = operation.outputs[0].shape
            channels, filters = inputs[0].shape[-1], output[-1]
            convolution = _convolution(inputs[2].shape, output)
            total += convolution + 8 * channels * convolution // (inputs[2].shape[2] * filters)
        elif (kind in ("BiasAdd", "Relu") and inputs[0].shape.rank == 4) or kind == "MaxPool":
            total += inputs[0].shape.num_elements()
        elif kind == "FusedBatchNormV3":
            total += 2 * inputs[0].shape.num_elements()
        elif kind == "Mul" and operation.outputs[0].shape.rank == 4:
            # The pyramid norms: (x - mean) * scale + beta. Nothing else multiplies maps.
            total += 2 * operation.outputs[0].shape.num_elements()
    return total


def _convolution(kernel_shape, output_shape):
    side_y, side_x, channels, _ = kernel_shape
    return side_y * side_x * channels * output_shape.num_elements()


def _is_deformable(inputs):
    """Arguments x, offset, kernel of `deform_conv2d`, which is one function call in the graph."""
    return len(inputs) >= 3 and [value.shape.rank for value in inputs[:3]] == [4, 4, 4]


def _map_shapes(function, shapes):
    if all(n is None or isinstance(n, int) for n in shapes):
        return function(tuple(shapes))
    return type(shapes)(_map_shapes(function, shape) for shape in shapes)


def format_costs(costs):
    """A text table of `count_detector`'s result, with the total."""
    rows = [*costs.items(), ("total", sum(costs.values(), Cost(0, 0)))]
    lines = [f"{'part':10}{'GFLOPs':>10}{'parameters':>14}"]
    lines += [
        f"{name:10}{cost.multiply_adds / 1e9:10.2f}{cost.parameters:14,}" for name, cost in rows
    ]
    return "\n".join(lines)


def paper_table(build, height=800, width=1280):
    """Markdown table of every row of the paper's Table 1 beside ours.

    Args:
        build: function of a detector type and a variant that returns the detector.
        height, width: of the network's input.

    Returns:
        str.
    """
    lines = []
    rows = [(kind, *row) for kind, figures in PAPER_GFLOPS.items() for row in figures.items()]
    for kind, variant, figure in track(rows, description="counting"):
        costs = count_detector(build(kind, variant), height, width)
        if not lines:
            names = [*costs]
            lines = [
                f"| detector | variant | {' | '.join(names)} | GFLOPs | paper | difference "
                "| parameters |",
                "|---" * (len(names) + 6) + "|",
            ]
        total = sum(costs.values(), Cost(0, 0))
        flops = total.multiply_adds / 1e9
        cells = [f"{cost.multiply_adds / 1e9:.2f}" for cost in costs.values()]
        lines.append(
            f"| {kind} | {variant} | {' | '.join(cells)} | {flops:.2f} | {figure} | "
            f"{100 * (flops / figure - 1):+.2f}% | {total.parameters / 1e6:.2f} M |"
        )
    return "\n".join(lines)
