import numpy as np
import pytest
import tensorflow as tf
from neck_checks import check_neck, random_maps

from sepc_tf.necks import HRFPN

CHANNELS = (3, 4, 5, 6)
MAPS = random_maps([(16, 24), (8, 12), (4, 6), (2, 3)], CHANNELS)


def test_is_saved_compiled_and_of_any_precision(tmp_path):
    outputs = check_neck(lambda **options: HRFPN(6, **options), MAPS, tmp_path)
    assert [tuple(y.shape[1:3]) for y in outputs] == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]


def test_sizes_that_are_no_halves_are_stretched():
    maps = random_maps([(17, 19), (9, 10), (5, 5), (3, 3)], CHANNELS)
    neck = HRFPN(6, num_levels=3, stride=1)
    outputs = neck(maps)
    assert [tuple(y.shape[1:3]) for y in outputs] == [(17, 19), (8, 9), (4, 4)]
    assert neck.compute_output_shape([x.shape for x in maps]) == [tuple(y.shape) for y in outputs]
    assert neck.finest_output_level == 2 and HRFPN(6).finest_output_level == 3


def test_constant_maps_reach_every_level():
    neck = HRFPN(6)
    neck.build([x.shape for x in MAPS])
    constant = [tf.fill(x.shape, float(i + 1)) for i, x in enumerate(MAPS)]
    vector = np.repeat([1.0, 2.0, 3.0, 4.0], CHANNELS)
    reduced = vector @ np.asarray(neck.reduction.kernel)[0, 0]
    for conv, level in zip(neck.outputs[:2], neck(constant)):
        expected = reduced @ np.asarray(conv.kernel).sum((0, 1))
        np.testing.assert_allclose(level[0, 1, 1], expected, atol=1e-5)  # away from the padding


def test_a_map_smaller_than_the_largest_window():
    small = [x[:, : x.shape[1] // 2] for x in MAPS]
    with pytest.raises(ValueError, match=r"at least 16 x 16 cells .* 64 pixels .* \(8, 24\)"):
        HRFPN(6)(small)
    neck = HRFPN(6)
    signature = [tf.TensorSpec([2, None, None, channels]) for channels in CHANNELS]
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least 16 x 16 cells"):
        tf.function(neck, input_signature=[signature])(small)
