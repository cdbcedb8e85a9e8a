"""The candidates' function as an OpenVINO model."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from sepc_tf.export.candidates import OUTPUTS, frozen
from sepc_tf.optional import import_package

PRECISIONS = ("float32", "float16", "bfloat16")


def write(module: tf.Module, file: Path, precision: str, samples) -> None:
    """Writes `FILE.xml` and, beside it, the weights `FILE.bin`.

    Args:
        module: what `sepc_tf.export.candidates.candidates` returned.
        file: ends in ".xml".
        precision: "float32"; "float16": weights are stored in half precision; "bfloat16": stored as
            float16, and the runtime computes in bfloat16.
        samples: not used.

    Raises:
        MissingPackageError: openvino is not installed.
    """
    openvino = import_package("openvino", "sepc-tf[openvino]", "export --format openvino")
    function = frozen(module)
    model = openvino.convert_model(function.graph.as_graph_def())
    ports = {name: p for p in (*model.inputs, *model.outputs) for name in p.get_names()}
    for tensor in function.inputs:
        ports[tensor.name].get_tensor().set_names({tensor.op.name})
    for name, tensor in zip(OUTPUTS, function.outputs):
        ports[tensor.name].get_tensor().set_names({name})
    openvino.save_model(model, str(file), compress_to_fp16=precision != "float32")
