"""Settings of what lies between the pyramid and the final convolutions."""

import dataclasses

from sepc_tf.settings import setting


@dataclasses.dataclass
class HeadConfig:
    """The paper's head variants, or the towers they replace."""

    # baseline, dcn: plain or deformable towers for each task; the others are the paper's
    variant: str = setting(
        "sepc_lite", choices=("baseline", "dcn", "pconv", "pconv_ibn", "sepc_lite", "sepc")
    )
    filters: int = setting(256, at_least=1)  # channels of pyramid and head
    # stacked PConvs, or convolutions per task of the plain head
    num_convs: int = setting(4, at_least=0)
    # null: the variant's own, none in plain towers; group: of the plain towers alone
    normalization: str | None = setting(
        None, choices=(None, "integrated", "single", "independent", "group")
    )
    # standard deviation of the initial kernels; null: 0.01 before a norm, without one what keeps
    # the variance of the features at this width
    kernel_stddev: float | None = setting(None, above=0)
    shared: bool = True  # false: one PConv stack per task
    # 1: a level of a PConv does not see its neighbours (N in the paper)
    scale_kernel_size: int = setting(3, choices=(1, 3))
