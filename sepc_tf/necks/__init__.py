"""Necks: from backbone maps to a pyramid (`FPN`), from a pyramid to task features."""

from sepc_tf.necks.fpn import FPN
from sepc_tf.necks.pconv import PConvNeck
from sepc_tf.necks.sepc import SEPC
from sepc_tf.necks.towers import ConvTowers

__all__ = ["FPN", "SEPC", "ConvTowers", "PConvNeck"]
