"""Weights under other frameworks' names: reading files, importing, exporting."""

from sepc_tf.checkpoints.backbone import load_backbone_weights
from sepc_tf.checkpoints.io import read_state_dict
from sepc_tf.checkpoints.mmdet import (
    ImportReport,
    export_state_dict,
    import_state_dict,
    mmdet_names,
)
from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.errors import CheckpointError

__all__ = [
    "CheckpointError",
    "ImportReport",
    "export_state_dict",
    "import_state_dict",
    "load_backbone_weights",
    "mmdet_names",
    "named_variables",
    "read_state_dict",
]
