import numpy as np
import pytest
from neck_checks import check_neck, random_maps

from sepc_tf.necks import FPN, PAFPN

MAPS = random_maps([(13, 18), (7, 9), (4, 5)], (4, 6, 8))


def test_is_saved_compiled_and_of_any_precision(tmp_path):
    check_neck(lambda **options: PAFPN(6, **options), MAPS, tmp_path)


def test_the_bottom_up_path_without_weights_is_an_fpn():
    neck, fpn = PAFPN(6, extra_levels="p5"), FPN(6, extra_levels="p5")
    for layer in (neck, fpn):
        layer.build([x.shape for x in MAPS])
    for mine, theirs in zip(neck.variables, fpn.variables):
        mine.assign(theirs)
    # Each down convolution adds 0, each other one hands on the centre.
    for conv in neck.downs:
        conv.kernel.assign(np.zeros(conv.kernel.shape))
    for conv in neck.bottom_ups:
        kernel = np.zeros(conv.kernel.shape)
        kernel[1, 1] = np.eye(6)
        conv.kernel.assign(kernel)
    for got, expected in zip(neck(MAPS), fpn(MAPS)):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    neck.downs[0].bias.assign(np.full(6, 5.0))
    # From P4 nothing goes on: the kernel there is 0.
    for got, expected, added in zip(neck(MAPS), fpn(MAPS), (0.0, 5.0, 0.0)):
        np.testing.assert_allclose(np.asarray(got) - expected, added, atol=1e-5)


def test_group_norm_of_the_second_path_too():
    neck = PAFPN(32, num_levels=3, norm="group")
    outputs = neck(MAPS)
    assert len(neck.down_norms) == len(neck.bottom_up_norms) == 2
    np.testing.assert_allclose(np.mean(outputs[1], (1, 2)), 0.0, atol=1e-5)


def test_choices_are_checked_as_in_an_fpn():
    with pytest.raises(ValueError, match="extra_levels must be one of"):
        PAFPN(6, extra_levels="c4")
