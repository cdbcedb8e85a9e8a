"""Family of cases: pyramid convolutions and the SEPC neck, in training and evaluation."""

from __future__ import annotations

import functools

from sepc_tf.layers import PConv
from sepc_tf.necks import SEPC
from sepc_tf.parity.comparing import NETWORK_TOLERANCE, Comparison
from sepc_tf.parity.golden import level_inputs
from sepc_tf.parity.modules import check_module


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
    if "part_deform" in config:
        return check_pconv, NETWORK_TOLERANCE
    if "pconv_deform" in config:
        return check_sepc, NETWORK_TOLERANCE
    return None


def check_pconv(case, comparison: Comparison) -> None:
    """One pyramid convolution: outputs; in training gradients and running statistics."""
    params = case.params()
    make_pconv = functools.partial(
        PConv,
        params["Pconv.1.weight"].shape[0],
        deformable=case.config["part_deform"],
        normalization="integrated" if case.config["iBN"] else None,
    )
    outputs = {"y": level_inputs(case, "cot")}
    check_module(case, comparison, make_pconv, outputs)


def check_sepc(case, comparison: Comparison) -> None:
    """The SEPC neck: outputs; in training gradients and running statistics."""
    params = case.params()
    make_neck = functools.partial(
        SEPC,
        params["cconv.weight"].shape[0],
        num_convs=case.config["Pconv_num"],
        deformable=case.config["pconv_deform"],
        extra_deformable=case.config["lcconv_deform"],
        normalization="integrated" if case.config["iBN"] else None,
        extra_padding="same" if case.config["lc_padding"] else "valid",
    )
    outputs = {"cls": level_inputs(case, "cot.cls"), "loc": level_inputs(case, "cot.loc")}
    check_module(case, comparison, make_neck, outputs)
