"""The candidates' function as an OpenVINO model (IR): the ONNX graph, converted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from sepc_tf.export import onnx
from sepc_tf.optional import import_package

PRECISIONS = ("float32", "float16", "bfloat16", "int8")


def write(
    module: tf.Module, file: Path, precision: str, samples: Callable[[], Iterator[dict]]
) -> None:
    """Writes `FILE.xml`, the graph, and `FILE.bin`, its weights.

    Args:
        module: what `sepc_tf.export.candidates.candidates` returned.
        file: where to write the graph; the weights lie beside it.
        precision: "float32"; "float16": weights are stored in half precision; "bfloat16": computes
            in it, on processors that can; "int8": as `sepc_tf.export.onnx` has it.
        samples: as in `sepc_tf.export.onnx.write`.

    Raises:
        MissingPackageError: openvino or onnx, or onnxruntime for int8, is not installed.
        UserError: as in `sepc_tf.export.onnx.write`.
    """
    openvino = import_package("openvino", "sepc-tf[openvino]", "export --format openvino")
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        onnx.write(module, graph, "int8" if precision == "int8" else "float32", samples)
        model = openvino.convert_model(graph)
        openvino.save_model(model, file, compress_to_fp16=precision == "float16")
