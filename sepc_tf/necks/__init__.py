"""Necks: from backbone maps to a pyramid (`FPN`), from a pyramid to task features."""

from sepc_tf.necks.bfp import BFP
from sepc_tf.necks.fpn import FPN
from sepc_tf.necks.hrfpn import HRFPN
from sepc_tf.necks.nas_fpn import NASFPN
from sepc_tf.necks.pafpn import PAFPN
from sepc_tf.necks.pconv import PConvNeck
from sepc_tf.necks.sepc import SEPC
from sepc_tf.necks.towers import ConvTowers

__all__ = ["BFP", "FPN", "HRFPN", "NASFPN", "PAFPN", "SEPC", "ConvTowers", "PConvNeck"]
