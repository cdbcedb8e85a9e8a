import keras
import numpy as np
import pytest
import tensorflow as tf
from neck_checks import check_neck, random_maps

from sepc_tf.necks import NASFPN
from sepc_tf.necks.nas_fpn import ConvBatchNorm


def maps(height, width, batch=2, seed=0):
    sizes = [(4 * height, 4 * width), (2 * height, 2 * width), (height, width)]
    return random_maps(sizes, (3, 4, 5), batch, seed)


def test_is_saved_compiled_and_of_any_precision(tmp_path):
    def make(**options):
        return NASFPN(4, num_cells=1, **options)

    outputs = check_neck(make, maps(4, 8), tmp_path)
    assert [tuple(y.shape[1:3]) for y in outputs] == [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_sizes_that_the_authors_code_refuses(size):
    neck = NASFPN(4, num_cells=2)
    inputs = maps(*size)
    outputs = neck(inputs)
    shapes = [tuple(y.shape) for y in outputs]
    assert neck.compute_output_shape([x.shape for x in inputs]) == shapes
    assert shapes[3][1:3] == tuple(-(-n // 2) for n in size)
    assert all(np.isfinite(y).all() for y in outputs)


def test_each_cell_has_weights_of_its_own():
    neck = NASFPN(4, num_cells=3)
    neck.build([x.shape for x in maps(4, 4)])
    names = [layer.name for layer in neck.merges]
    assert len(set(names)) == 21 and names[7] == "cell_1_gp_64_4"


def test_two_maps_are_too_few():
    with pytest.raises(ValueError, match="NASFPN takes 3 maps, C3 to C5 of a backbone; got 2"):
        NASFPN(4).build([(None, None, None, 3)] * 2)


def test_two_replicas_have_the_statistics_of_the_whole_batch(two_replicas):
    (x,) = random_maps([(3, 5)], [3], batch=4)

    def trained(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            layer = ConvBatchNorm(4, 1)
            layer.build(x.shape)
        share = 4 // strategy.num_replicas_in_sync

        def rows(context):
            start = context.replica_id_in_sync_group * share
            return x[start : start + share]

        data = strategy.experimental_distribute_values_from_function(rows)
        strategy.run(tf.function(lambda x: layer(x, training=True)), (data,))
        return [np.asarray(v) for v in layer.non_trainable_variables]

    one, two = trained(tf.distribute.get_strategy()), trained(two_replicas)
    for expected, got in zip(one, two, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
