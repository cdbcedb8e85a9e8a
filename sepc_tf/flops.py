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

# Table 2, FreeAnchor with ResNet-50: row -> (necks, variant, figure).
PAPER_FUSION_GFLOPS = {
    "FPN": ([{"type": "fpn"}], "baseline", 239.3),
    "HR-Net": ([{"type": "hrfpn"}], "baseline", 297.6),
    "PA-Net": ([{"type": "pafpn"}], "baseline", 245.9),
    "NAS-FPN": ([{"type": "nas_fpn"}], "baseline", 347.1),
    "Libra": ([{"type": "fpn"}, {"type": "bfp"}], "baseline", 315.8),
    "PConv": ([{"type": "fpn"}], "pconv", 239.3),
}

# Table 4: detector type -> box AP without and with PConv. The paper gives no GFLOPs there.
PAPER_TWO_STAGE_AP = {
    "faster_rcnn": (36.5, 38.5),
    "mask_rcnn": (37.3, 39.6),
    "htc": (42.1, 43.6),
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
        >>> costs = count_detector(detector, 64, 64)
        >>> sum(cost.parameters for cost in costs.values()) == detector.count_params() - sum(
        ...     int(np.prod(v.shape)) for v in detector.non_trainable_variables)
        True

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
        >>> conv = keras.layers.Conv2D(8, 3)
        >>> conv.build((1, 10, 10, 4))
        >>> count_layer(conv, (1, 10, 10, 4))  # 8 x 8 positions; 4 x 3 x 3 products and 1 bias
        Cost(multiply_adds=18944, parameters=296)
    """
    spec = _map_shapes(lambda shape: tf.TensorSpec(shape, tf.float32), input_shape)
    function = tf.function(lambda inputs: layer(inputs), autograph=False)
    with portable_ops():
        graph = function.get_concrete_function(spec).graph
    parameters = sum(
        int(np.prod(variable.shape))
        for path, variable in named_variables(layer).items()
        if not path.split("/")[-1].startswith("moving_")
    )
    return Cost(count_operations(graph), parameters)


def count_operations(graph: tf.Graph) -> int:
    """Multiply-adds of the operations of a traced graph with known shapes.

    - convolution: `C_in k_h k_w H W C_out` (with groups, C_in of one group; depthwise, 1 and the
      channel multiplier); a transposed one: the same, with the H and W of its input;
    - deformable convolution: the same as a convolution, and `8 C_in k_h k_w H W` for the bilinear
      samples (its offsets come from a convolution counted as such):
      `1 + (8 + 2 k_h k_w) / C_out` in all;
    - product of matrices `[M, K]` and `[K, N]`: `M K N`;
    - bias and ReLU (Leaky ReLU, ELU, ReLU6) 1 for each element, batch norm 2, pooling 1 for each
      element it reads;
    - product of a map with a number for each channel 2 for each element (a norm: the sum that
      follows is the second), with another map or one number that is learnt 1. So a group norm takes
      2 as a batch norm does: its statistics are of maps split in groups, which have another rank.

    What is computed from shapes and parameters alone is not counted: it is the same for each image.
    So a resize is known from a dense layer: both are a product of matrices, but the matrix of the
    resize is made of shapes, that of the layer is a parameter. Resizing, padding, sums of maps
    (residual, top-down) and everything else in `FREE` is not counted either. These are the rules of
    mmdetection's counter, which the paper used, and of the paper's appendix 1.

    Args:
        graph: of a `tf.function` that was traced with one image; its inputs are the data, what it
            captures are the parameters.

    Returns:
        multiply-adds, of functions that are called as well.

    Raises:
        ValueError: an operation that computes with the data and is in no list; the message names
            it. Or a shape is not known.

    Example:
        >>> kernel = tf.Variable(tf.ones([3, 3, 3, 16]))
        >>> function = tf.function(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME"))
        >>> count_operations(function.get_concrete_function(tf.TensorSpec([1, 8, 8, 3])).graph)
        27648
    """
    captured = {tensor.ref() for tensor in graph.internal_captures}
    origins = [PARAMETER if tensor.ref() in captured else DATA for tensor in graph.inputs]
    return _count(graph, origins)[0]


# Where a number comes from: from shapes and constants, from what the layer holds, from the image.
SHAPES, PARAMETER, DATA = range(3)

CALLS = ("PartitionedCall", "StatefulPartitionedCall")

# Operations on the data that are not counted.
# fmt: off
FREE = frozenset([
    # The same numbers in another place, shape or type; padding; resizing.
    "BatchToSpaceND", "BroadcastTo", "Cast", "Concat", "ConcatV2", "DepthToSpace", "EnsureShape",
    "ExpandDims", "Gather", "GatherNd", "GatherV2", "Identity", "IdentityN", "MirrorPad", "Pack",
    "Pad", "PadV2", "Reshape", "ResizeBilinear", "ResizeNearestNeighbor", "ReverseV2", "Roll",
    "Slice", "SpaceToBatchND", "SpaceToDepth", "Split", "SplitV", "Squeeze", "StopGradient",
    "StridedSlice", "Tile", "Transpose", "Unpack",
    # Sums of maps, and functions that mmdetection's counter does not know.
    "Add", "AddN", "AddV2", "Exp", "Neg", "Rsqrt", "Sigmoid", "Softmax", "Softplus", "Square",
    "Sub", "Tanh",
])
# fmt: on


def _count(graph, input_origins):
    """Returns the multiply-adds of a graph, and the origins of its outputs."""
    origins = {tensor.ref(): origin for tensor, origin in zip(graph.inputs, input_origins)}
    total = 0
    for operation in graph.get_operations():
        kind = operation.type
        if kind == "Placeholder":
            continue
        inputs = [origins[tensor.ref()] for tensor in operation.inputs]
        origin = max(inputs, default=SHAPES)
        outputs = [origin] * len(operation.outputs)
        if kind in ("Shape", "ShapeN", "Rank", "Size"):
            outputs = [SHAPES] * len(operation.outputs)
        elif origin != DATA or kind in FREE:
            pass
        elif kind in CALLS and DEFORMABLE in _called(operation):
            total += _deformable_convolution(operation)
        elif kind in CALLS:
            count, outputs = _count(graph._get_function(_called(operation)).graph, inputs)
            total += count
        elif kind in COUNTED:
            total += COUNTED[kind](operation, inputs)
        else:
            raise ValueError(
                f"{operation.name}: operations of type {kind} are not counted; add it to COUNTED "
                "or FREE in sepc_tf/flops.py"
            )
        origins.update(zip([tensor.ref() for tensor in operation.outputs], outputs))
    return total, [origins[tensor.ref()] for tensor in graph.outputs]


DEFORMABLE = "portable_deform_conv2d"  # part of the name of the function that is one


def _called(operation):
    """The name of the function that the operation calls."""
    return operation.get_attr("f").name


def _size(tensor):
    size = tensor.shape.num_elements()
    if size is None:
        raise ValueError(
            f"{tensor.name}: cannot be counted with a shape that is not known: {tensor.shape}"
        )
    return size


def _elements_read(operation, _):
    return _size(operation.inputs[0])


def _mean(operation, _):
    return _elements_read(operation, _) if operation.inputs[0].shape.rank == 4 else 0


def _batch_norm(operation, _):
    return 2 * _size(operation.inputs[0])


def _convolution(operation, _):
    return _convolution_of(operation.inputs[1], _map_out(operation))


def _convolution_of(kernel, output):
    side_y, side_x, channels, _ = kernel.shape
    return side_y * side_x * channels * _size(output)


def _depthwise_convolution(operation, _):
    side_y, side_x = operation.inputs[1].shape[:2]
    return side_y * side_x * _size(_map_out(operation))


def _map_out(operation):
    """The output of a convolution; of a dilated one it may be cut in pieces, with a margin."""
    (output,) = operation.outputs
    joined = [after for after in output.consumers() if after.type == "BatchToSpaceND"]
    return joined[0].outputs[0] if joined else output


def _transposed_convolution(operation, _):
    _, kernel, x = operation.inputs
    side_y, side_x, filters, _ = kernel.shape
    return side_y * side_x * filters * _size(x)


def _deformable_convolution(operation):
    """Inputs x, offset, kernel (and mask) of `deform_conv2d`."""
    x, _, kernel = operation.inputs[:3]
    channels, filters = x.shape[-1], kernel.shape[-1]
    convolution = _convolution_of(kernel, operation.outputs[0])
    return convolution + 8 * channels * convolution // (kernel.shape[2] * filters)


def _matrix_product(operation, origins):
    if SHAPES in origins:
        return 0  # a resize
    transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    return operation.inputs[0].shape[-2 if transposed else -1] * _size(operation.outputs[0])


def _product(operation, origins):
    """Of maps; arithmetic on boxes and vectors is not counted."""
    output = operation.outputs[0]
    if output.shape.rank != 4 or SHAPES in origins:
        return 0
    per_channel = any(
        origin == PARAMETER and _size(tensor) > 1
        for tensor, origin in zip(operation.inputs, origins)
    )
    return (2 if per_channel else 1) * _size(output)


# How an operation is counted, given where its inputs come from.
COUNTED = {
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _depthwise_convolution,
    "Conv2DBackpropInput": _transposed_convolution,
    "MatMul": _matrix_product,
    "BatchMatMul": _matrix_product,
    "BatchMatMulV2": _matrix_product,
    "BatchMatMulV3": _matrix_product,
    "BiasAdd": _elements_read,
    "Relu": _elements_read,
    "Relu6": _elements_read,
    "LeakyRelu": _elements_read,
    "Elu": _elements_read,
    "MaxPool": _elements_read,
    "MaxPoolV2": _elements_read,
    "AvgPool": _elements_read,
    "Mean": _mean,
    "Max": _elements_read,
    "FusedBatchNorm": _batch_norm,
    "FusedBatchNormV2": _batch_norm,
    "FusedBatchNormV3": _batch_norm,
    "Mul": _product,
    "RealDiv": _product,
}


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


def paper_tables(build, height=800, width=1280):
    """Markdown tables of every row of the paper's Tables 1, 2 and 4, beside ours.

    Args:
        build: function of a detector type, a head variant (None for the default), a list of necks
            (as in `detector.necks`) and `detector.options` that returns the detector.
        height, width: of the network's input.

    Returns:
        str.
    """
    fpn = [{"type": "fpn"}]
    detectors = [
        (kind, variant, (kind, variant, fpn, {}), figure)
        for kind, figures in PAPER_GFLOPS.items()
        for variant, figure in figures.items()
    ]
    fusion = [
        (name, variant, ("free_anchor", variant, necks, {}), figure)
        for name, (necks, variant, figure) in PAPER_FUSION_GFLOPS.items()
    ]
    tables = []
    for first_column, rows in (("detector", detectors), ("necks of free_anchor", fusion)):
        lines = [
            f"| {first_column} | variant | backbone | necks | towers | head | GFLOPs | paper "
            "| difference | parameters |",
            "|---" * 10 + "|",
        ]
        for label, variant, what, figure in track(rows, description="counting"):
            costs = count_detector(build(*what), height, width)
            lines.append(f"| {label} | {variant} | {_cells(costs, figure)} |")
        tables.append("\n".join(lines))
    return "\n\n".join([*tables, _two_stage_table(build, height, width)])


def _two_stage_table(build, height, width):
    """Table 4: 1000 boxes go through the box heads, 100 through the mask heads."""
    lines = [
        "| detector | necks | backbone | necks | RPN | box heads | mask heads | semantic head "
        "| GFLOPs | parameters | paper's box AP |",
        "|---" * 11 + "|",
    ]
    fpn = {"type": "fpn", "min_level": 2, "extra_levels": "pool"}
    rows = [
        (kind, label, necks, ap)
        for kind, aps in PAPER_TWO_STAGE_AP.items()
        for label, necks, ap in zip(
            ("FPN", "FPN, PConv"), ([fpn], [fpn, {"type": "pconv", "num_convs": 4}]), aps
        )
    ]
    kinds = {"backbone": "backbone", "towers": "RPN", "head": "RPN"}
    columns = ("backbone", "necks", "RPN", "box", "mask", "semantic")
    for kind, label, necks, ap in track(rows, description="counting"):
        options = {"semantic": {"classes": 183}} if kind == "htc" else {}  # COCO-stuff's
        costs = count_detector(build(kind, None, necks, options), height, width)
        sums = dict.fromkeys(columns, 0)
        for name, cost in costs.items():
            first, is_head, _ = name.partition("_head")
            sums[kinds.get(name, first if is_head else "necks")] += cost.multiply_adds
        total = sum(costs.values(), Cost(0, 0))
        cells = [f"{sums[column] / 1e9:.2f}" for column in columns]
        cells += [f"{total.multiply_adds / 1e9:.2f}", f"{total.parameters / 1e6:.2f} M", f"{ap}"]
        lines.append(f"| {kind} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(costs, figure):
    """The numbers of one row; the necks of a detector are added up."""
    total = sum(costs.values(), Cost(0, 0))
    ends = {name: costs[name].multiply_adds for name in ("backbone", "towers", "head")}
    necks = total.multiply_adds - sum(ends.values())
    parts = [ends["backbone"], necks, ends["towers"], ends["head"]]
    flops = total.multiply_adds / 1e9
    cells = [f"{part / 1e9:.2f}" for part in parts]
    cells += [f"{flops:.2f}", f"{figure}", f"{100 * (flops / figure - 1):+.2f}%"]
    return " | ".join([*cells, f"{total.parameters / 1e6:.2f} M"])
