"""The candidates' function as an ONNX graph, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import tensorflow as tf

from sepc_tf.errors import UserError
from sepc_tf.export.candidates import OUTPUTS, frozen
from sepc_tf.optional import import_package

PRECISIONS = ("float32", "int8")
OPSET = 18
ALIASES = ("Identity", "EnsureShape", "StopGradient", "PreventGradient")
# Operations with the same arguments, broadcasting included.
SAME = {
    "Abs": "Abs",
    "Add": "Add",
    "AddV2": "Add",
    "BiasAdd": "Add",
    "Equal": "Equal",
    "Exp": "Exp",
    "Floor": "Floor",
    "Greater": "Greater",
    "GreaterEqual": "GreaterOrEqual",
    "Less": "Less",
    "LessEqual": "LessOrEqual",
    "Log": "Log",
    "LogicalAnd": "And",
    "LogicalNot": "Not",
    "LogicalOr": "Or",
    "Maximum": "Max",
    "Minimum": "Min",
    "Mul": "Mul",
    "Neg": "Neg",
    "Pow": "Pow",
    "RealDiv": "Div",
    "Relu": "Relu",
    "Select": "Where",
    "SelectV2": "Where",
    "Sigmoid": "Sigmoid",
    "Sqrt": "Sqrt",
    "Sub": "Sub",
    "Tanh": "Tanh",
}
REDUCTIONS = {"Max": "ReduceMax", "Mean": "ReduceMean", "Min": "ReduceMin", "Sum": "ReduceSum"}
NCHW, NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


def write(
    module: tf.Module, file: Path, precision: str, samples: Callable[[], Iterator[dict]]
) -> None:
    """Writes an ONNX model.

    Args:
        module: what `sepc_tf.export.candidates.candidates` returned.
        file: where to write.
        precision: "float32"; "int8": the convolutions of the backbone compute with bytes, one scale
            for each output channel, of activations one for each map; what follows, deformable
            convolutions and the box arithmetic among it, stays float32.
        samples: function that returns an iterator over inputs of the model, dicts of arrays, from
            which the scales of activations are taken.

    Raises:
        MissingPackageError: onnx, or onnxruntime for int8, is not installed.
        UserError: the graph has an operation that is not in the tables of this module.
    """
    onnx = import_package("onnx", "sepc-tf[onnx]", "export --format onnx")
    model = _translated(onnx, frozen(module))
    if precision == "float32":
        file.write_bytes(model.SerializeToString())
        return
    quantization = import_package(
        "onnxruntime.quantization", "sepc-tf[onnx]", "export --format onnx --precision int8"
    )

    class Samples(quantization.CalibrationDataReader):
        def __init__(self):
            self._samples = samples()

        def get_next(self):
            return next(self._samples, None)

    quantization.quantize_static(
        model,
        file,
        Samples(),
        per_channel=True,
        op_types_to_quantize=["Conv"],
        nodes_to_quantize=[
            node.name
            for node in model.graph.node
            if node.op_type == "Conv"
            and any(part.startswith("backbone") for part in node.name.split("/"))
        ],
    )


def _translated(onnx, function):
    """A frozen function as `onnx.ModelProto`; what depends on no argument becomes a constant."""
    graph = _Graph(onnx, function)
    for op in function.graph.get_operations():
        if op in graph.variable and op.type != "Placeholder":
            graph.translate(op)
    helper = onnx.helper
    outputs = []
    for name, tensor in zip(OUTPUTS, function.outputs):
        graph.nodes.append(helper.make_node("Identity", [graph.name_of(tensor)], [name]))
        outputs.append(graph.value_info(name, tensor))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "candidates",
            [graph.value_info(x.op.name, x) for x in function.inputs],
            outputs,
            list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="sepc-tf",
    )
    onnx.checker.check_model(model)
    return model


class _Graph:
    """An ONNX graph in the making.

    Attributes:
        variable: the operations that depend on an argument.
        nodes: of the ONNX graph, in order.
        constants: its initializers by name.
    """

    def __init__(self, onnx: ModuleType, function):
        self.helper, self.numpy_helper = onnx.helper, onnx.numpy_helper
        self.variable = _dependents(function.inputs)
        self.nodes, self.constants = [], {}
        self._aliases, self._convolutions = {}, {}
        needed = {
            tensor.name: tensor
            for op in self.variable
            for tensor in op.inputs
            if tensor.op not in self.variable
        }
        values = function.prune([], list(needed.values()))() if needed else []
        self._values = {name: value.numpy() for name, value in zip(needed, values)}

    def value_info(self, name, tensor):
        kind = self.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype.as_numpy_dtype))
        return self.helper.make_tensor_value_info(name, kind, tensor.shape.as_list())

    def value(self, tensor) -> np.ndarray:
        """The value of an input that depends on no argument."""
        return self._values[tensor.name]

    def name_of(self, tensor) -> str:
        """How a tensor is called in the ONNX graph."""
        if tensor.op in self.variable:
            name = self._aliases.get(tensor.name, tensor.name)
            return tensor.op.name if tensor.op.type == "Placeholder" else name
        return self.constant(self.value(tensor), tensor.name)

    def constant(self, value, name: str | None = None) -> str:
        """Adds an initializer, once for each name."""
        name = name or f"constant_{len(self.constants)}"
        if name not in self.constants:
            self.constants[name] = self.numpy_helper.from_array(np.asarray(value), name)
        return name

    def integers(self, *values) -> str:
        return self.constant(np.array(values, np.int64))

    def add(self, kind: str, inputs: list[str], output: str | None = None, **attributes) -> str:
        """Adds a node of one output and returns the output's name."""
        output = output or f"value_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def translate(self, op) -> None:
        inputs, output = list(op.inputs), op.outputs[0].name
        if op.type in ALIASES or (op.type == "BiasAdd" and self._take_bias(*inputs)):
            self._aliases[output] = self.name_of(inputs[0])
        elif op.type in SAME:
            self.add(SAME[op.type], [self.name_of(x) for x in inputs], output)
        elif op.type in REDUCTIONS:
            axes = self.integers(*np.atleast_1d(self.value(inputs[1])))
            data, keep = self.name_of(inputs[0]), int(op.get_attr("keep_dims"))
            self.add(REDUCTIONS[op.type], [data, axes], output, keepdims=keep)
        elif op.type in TRANSLATIONS:
            TRANSLATIONS[op.type](self, op, inputs, output)
        else:
            raise UserError(
                f"ONNX: no translation of TensorFlow's {op.type} ({op.name}); export this detector "
                "in another format"
            )

    def _take_bias(self, x, bias):
        """Gives a bias to the convolution before it, if nothing else uses that one's result."""
        node = self._convolutions.get(x.name)
        if node is None or len(x.consumers()) > 1:
            return False
        node.input.append(self.name_of(bias))
        return True

    def convolution(self, op, x, kernel, output, groups):
        """Adds a convolution in ONNX's layout; `kernel` is `[D, C / groups, kh, kw]`."""
        x = self.add("Transpose", [self.name_of(x)], perm=NCHW)
        y = self.add(
            "Conv",
            [x, self.constant(kernel)],
            name=op.name,
            group=groups,
            dilations=list(op.get_attr("dilations"))[1:3],
            **_window(op, kernel.shape[2:]),
        )
        self._convolutions[output] = self.nodes[-1]
        self.add("Transpose", [y], output, perm=NHWC)


def _dependents(inputs):
    """The operations whose results depend on `inputs`, these included."""
    found, waiting = set(), [x.op for x in inputs]
    while waiting:
        op = waiting.pop()
        if op not in found:
            found.add(op)
            waiting += [consumer for y in op.outputs for consumer in y.consumers()]
    return found


def _window(op, kernel_shape):
    """The attributes of a sliding window."""
    padding = op.get_attr("padding").decode()
    attributes = {"strides": list(op.get_attr("strides"))[1:3], "kernel_shape": list(kernel_shape)}
    if padding == "EXPLICIT":
        top, bottom, left, right = list(op.get_attr("explicit_paddings"))[2:6]
        return {**attributes, "pads": [top, left, bottom, right]}
    return {**attributes, "auto_pad": {"SAME": "SAME_UPPER", "VALID": "VALID"}[padding]}


# Each is a function of (graph, operation, its inputs, the name of its first output).


def _conv2d(graph, op, inputs, output):
    x, kernel = inputs
    kernel = np.transpose(graph.value(kernel), [3, 2, 0, 1])
    graph.convolution(op, x, kernel, output, x.shape[-1] // kernel.shape[1])


def _depthwise_conv2d(graph, op, inputs, output):
    x, kernel = inputs
    value = graph.value(kernel)
    height, width, channels, multiplier = value.shape
    kernel = np.transpose(value, [2, 3, 0, 1]).reshape(channels * multiplier, 1, height, width)
    graph.convolution(op, x, kernel, output, channels)


def _max_pool(graph, op, inputs, output):
    x = graph.add("Transpose", [graph.name_of(inputs[0])], perm=NCHW)
    y = graph.add("MaxPool", [x], **_window(op, list(op.get_attr("ksize"))[1:3]))
    graph.add("Transpose", [y], output, perm=NHWC)


def _batch_norm(graph, op, inputs, output):
    x, gamma, beta, mean, variance = inputs
    scale = graph.value(gamma) / np.sqrt(graph.value(variance) + op.get_attr("epsilon"))
    shift = graph.value(beta) - graph.value(mean) * scale
    y = graph.add("Mul", [graph.name_of(x), graph.constant(np.float32(scale))])
    graph.add("Add", [y, graph.constant(np.float32(shift))], output)


def _matmul(graph, op, inputs, output):
    names = []
    flags = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
    for x, flag in zip(inputs, flags):
        name = graph.name_of(x)
        if op.get_attr(flag):
            axes = list(range(x.shape.rank))
            name = graph.add("Transpose", [name], perm=[*axes[:-2], axes[-1], axes[-2]])
        names.append(name)
    graph.add("MatMul", names, output)


def _reshape(graph, op, inputs, output):
    """Also of ExpandDims, Squeeze and what else leaves the numbers in their order."""
    shape = graph.integers(*op.outputs[0].shape)
    graph.add("Reshape", [graph.name_of(inputs[0]), shape], output)


def _strided_slice(graph, op, inputs, output):
    x, begin, end, strides = inputs
    begin, end, strides = (graph.value(v).tolist() for v in (begin, end, strides))
    masks = {
        name: op.get_attr(f"{name}_mask")
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    starts, ends, axes, steps, axis = [], [], [], [], 0
    for i, (first, last, step) in enumerate(zip(begin, end, strides)):
        has = {name: bool(mask >> i & 1) for name, mask in masks.items()}
        if has["ellipsis"]:
            later = sum(not masks["new_axis"] >> j & 1 for j in range(i + 1, len(begin)))
            axis = x.shape.rank - later
        elif not has["new_axis"]:
            size = x.shape[axis]
            if has["shrink_axis"]:
                first %= size
                last, step = first + 1, 1
            else:
                first, last, step = slice(
                    None if has["begin"] else first, None if has["end"] else last, step
                ).indices(size)
            starts.append(first)
            # -1 would be the last element, not the one before the first.
            ends.append(last if last >= 0 else -size - 1)
            axes.append(axis)
            steps.append(step)
            axis += 1
    name = graph.name_of(x)
    if axes:
        name = graph.add(
            "Slice", [name, *(graph.integers(*v) for v in (starts, ends, axes, steps))]
        )
    graph.add("Reshape", [name, graph.integers(*op.outputs[0].shape)], output)


def _gather(graph, op, inputs, output):
    x, rows, axis = inputs
    axis, batch_dims = int(graph.value(axis)), op.get_attr("batch_dims")
    names = [graph.name_of(x), graph.name_of(rows)]
    if batch_dims == 0:
        graph.add("Gather", names, output, axis=axis)
        return
    if axis != batch_dims:
        raise UserError(f"ONNX: {op.name} gathers along axis {axis} behind {batch_dims} batch axes")
    rows = graph.add("Cast", [names[1]], to=graph.helper.np_dtype_to_tensor_dtype(np.dtype("i8")))
    rows = graph.add("Unsqueeze", [rows, graph.integers(-1)])
    graph.add("GatherND", [names[0], rows], output, batch_dims=batch_dims)


def _top_k(graph, op, inputs, output):
    count = graph.integers(int(graph.value(inputs[1])))
    rows = f"value_{len(graph.nodes)}"
    node = graph.helper.make_node(
        "TopK", [graph.name_of(inputs[0]), count], [output, rows], axis=-1
    )
    graph.nodes.append(node)
    _cast_to(graph, rows, op.outputs[1].dtype, op.outputs[1].name)


def _cast(graph, op, inputs, output):
    _cast_to(graph, graph.name_of(inputs[0]), op.outputs[0].dtype, output)


def _cast_to(graph, name, dtype, output):
    kind = graph.helper.np_dtype_to_tensor_dtype(np.dtype(dtype.as_numpy_dtype))
    graph.add("Cast", [name], output, to=kind)


def _concat(graph, op, inputs, output):
    names = [graph.name_of(x) for x in inputs[:-1]]
    graph.add("Concat", names, output, axis=int(graph.value(inputs[-1])))


def _pack(graph, op, inputs, output):
    axis = op.get_attr("axis")
    axes = graph.integers(axis)
    names = [graph.add("Unsqueeze", [graph.name_of(x), axes]) for x in inputs]
    graph.add("Concat", names, output, axis=axis)


def _unpack(graph, op, inputs, output):
    name, axis = graph.name_of(inputs[0]), op.get_attr("axis")
    for index, result in enumerate(op.outputs):
        position = graph.constant(np.int64(index))
        graph.add("Gather", [name, position], result.name, axis=axis)


def _split(graph, op, inputs, output):
    if op.type == "Split":  # the axis comes first, parts are equal
        axis, x = inputs
        axis = int(graph.value(axis))
        sizes = [part.shape[axis] for part in op.outputs]
    else:
        x, sizes, axis = inputs
        axis, sizes = int(graph.value(axis)), graph.value(sizes).tolist()
    ends = np.cumsum(sizes)
    for part, size, end in zip(op.outputs, sizes, ends):
        bounds = [graph.integers(v) for v in (end - size, end, axis)]
        graph.add("Slice", [graph.name_of(x), *bounds], part.name)


def _transpose(graph, op, inputs, output):
    graph.add("Transpose", [graph.name_of(inputs[0])], output, perm=graph.value(inputs[1]).tolist())


def _tile(graph, op, inputs, output):
    counts = graph.integers(*graph.value(inputs[1]))
    graph.add("Tile", [graph.name_of(inputs[0]), counts], output)


def _pad(graph, op, inputs, output):
    before, after = graph.value(inputs[1]).T
    names = [graph.name_of(inputs[0]), graph.integers(*before, *after)]
    if op.type == "PadV2":
        names.append(graph.name_of(inputs[2]))
    graph.add("Pad", names, output)


def _rsqrt(graph, op, inputs, output):
    graph.add("Reciprocal", [graph.add("Sqrt", [graph.name_of(inputs[0])])], output)


def _square(graph, op, inputs, output):
    name = graph.name_of(inputs[0])
    if op.type == "SquaredDifference":
        name = graph.add("Sub", [name, graph.name_of(inputs[1])])
    graph.add("Mul", [name, name], output)


TRANSLATIONS: dict[str, Callable] = {
    "BatchMatMulV2": _matmul,
    "Cast": _cast,
    "ConcatV2": _concat,
    "Conv2D": _conv2d,
    "DepthwiseConv2dNative": _depthwise_conv2d,
    "ExpandDims": _reshape,
    "FusedBatchNormV3": _batch_norm,
    "GatherV2": _gather,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Pack": _pack,
    "Pad": _pad,
    "PadV2": _pad,
    "Reshape": _reshape,
    "Rsqrt": _rsqrt,
    "Split": _split,
    "SplitV": _split,
    "Square": _square,
    "SquaredDifference": _square,
    "Squeeze": _reshape,
    "StridedSlice": _strided_slice,
    "Tile": _tile,
    "TopKV2": _top_k,
    "Transpose": _transpose,
    "Unpack": _unpack,
}
