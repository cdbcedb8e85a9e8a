"""The authors' numbers: every case of a golden folder, computed by this package and compared.

A golden folder holds outputs of the authors' code, and a `recipe.py` that makes the parameters and
inputs they were computed from again. Weights enter through `import_state_dict`, as a user's do.
What a case asks for, and every size in it, is read from the case itself. Every stored output must
be compared.

Tolerances are relative to the largest value of the array compared: `OPERATOR_TOLERANCE` for single
operators, losses and decoding, `NETWORK_TOLERANCE` for pyramid convolutions, necks, backbones,
detectors and FreeAnchor's loss, `FLOAT64_TOLERANCE` for what is compared in float64.

To add cases of another kind: one file beside `necks.py`, and its name in `families.FAMILIES`.
"""

from sepc_tf.parity.comparing import (
    FLOAT64_TOLERANCE,
    NETWORK_TOLERANCE,
    OPERATOR_TOLERANCE,
    Comparison,
    relative_error,
)
from sepc_tf.parity.families import check_case, check_of
from sepc_tf.parity.golden import load_cases
from sepc_tf.parity.operators import check_deform_conv

__all__ = [
    "FLOAT64_TOLERANCE",
    "NETWORK_TOLERANCE",
    "OPERATOR_TOLERANCE",
    "Comparison",
    "check_case",
    "check_deform_conv",
    "check_of",
    "load_cases",
    "relative_error",
]
