"""Path aggregation network: a feature pyramid with a second, bottom-up path."""

import keras

from sepc_tf.necks.fpn import FPN, each


@keras.saving.register_keras_serializable(package="sepc_tf")
class PAFPN(FPN):
    """Feature pyramid of PA-Net: an FPN, then a path from the finest level back up.

    With O3, O4, O5 the outputs of the FPN: `N3 = O3`, `N_(l+1) = O_(l+1) + down_l(N_l)` with
    stride-2 3x3 convolutions; `P3 = N3`, and the other `P_l` are 3x3 convolutions of `N_l`. The
    levels beyond P5 are those of an FPN (made of C5, or of the new P5). No activations.

    Sublayers: those of `FPN`, and `down_p3` ..., `bottom_up_p4` ....

    Args, call arguments, returns, raises: as `FPN`.

    Example:
        >>> p3, p4, p5, p6, p7 = PAFPN(8)([tf.zeros([1, 2 * n, 3 * n, 4]) for n in (16, 8, 4)])

    Source: Liu et al. 2018 (arXiv 1803.01534), in the form of mmdetection 2.0; paper, Table 2.
    """

    def build(self, features_shape):
        super().build(features_shape)
        levels = range(self.min_level, self.min_level + len(features_shape))
        self.downs = [self._conv(f"down_p{level}", 3, strides=2) for level in levels[:-1]]
        self.bottom_ups = [self._conv(f"bottom_up_p{level}", 3) for level in levels[1:]]
        for conv in [*self.downs, *self.bottom_ups]:
            conv.build((None, None, None, self.filters))
        self.down_norms, self.bottom_up_norms = (
            [self._norm(conv) for conv in convs if self.norm]
            for convs in (self.downs, self.bottom_ups)
        )

    def call(self, features, training=None):
        levels = each(self.output_norms, each(self.outputs, self.top_down(features)))
        for i, down in enumerate(self.downs):
            (below,) = each(self.down_norms[i : i + 1], [down(levels[i])])
            levels[i + 1] += below
        finest, *others = levels
        others = each(self.bottom_up_norms, each(self.bottom_ups, others))
        return self.extended([finest, *others], features[-1])
