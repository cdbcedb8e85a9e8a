import numpy as np
import pytest
from neck_checks import check_neck, random_maps

from sepc_tf.necks import BFP

SIZES = [(9, 13), (5, 7), (3, 4), (2, 2)]


def test_is_saved_compiled_and_of_any_precision(tmp_path):
    pyramid = random_maps(SIZES, [6] * 4)
    check_neck(lambda **options: BFP(refine_level=2, **options), pyramid, tmp_path)


def test_non_local_block_by_its_equation():
    # One level: gathering and scattering do nothing.
    (x,) = random_maps([(3, 4)], [6])
    neck = BFP(refine_level=0)
    neck.build([x.shape])
    rng = np.random.default_rng(0)
    for variable in neck.variables:
        variable.assign(rng.standard_normal(variable.shape))

    def pixels(layer, rows):
        return rows @ np.asarray(layer.kernel, np.float64)[0, 0] + np.asarray(layer.bias)

    for image, got in zip(np.float64(x), neck([x])[0]):
        rows = image.reshape(12, 6)
        scores = pixels(neck.theta, rows) @ pixels(neck.phi, rows).T
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        refined = rows + pixels(neck.out, weights @ pixels(neck.g, rows))
        np.testing.assert_allclose(np.reshape(got, (12, 6)), rows + refined, atol=1e-3)


@pytest.mark.parametrize(("level", "channels"), [(4, [6] * 4), (1, [6, 6, 8, 8])])
def test_what_is_no_pyramid(level, channels):
    with pytest.raises(ValueError, match="put it behind an FPN"):
        BFP(refine_level=level).build([(None, None, None, c) for c in channels])
