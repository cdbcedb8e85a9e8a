"""The mask branch: logits of one class, flow between heads, targets' loss, against numpy."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf import compat
from sepc_tf.checkpoints import named_variables
from sepc_tf.detectors.two_stage.mask_head import MaskBranch, MaskHead
from sepc_tf.layers.roi_align import RoIAlign
from sepc_tf.ops.bitmaps import pack_masks
from sepc_tf.ops.matching import BACKGROUND, IGNORED


def values(seed, *shape):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.fixture(scope="module")
def heads():
    made = [MaskHead(3, filters=4, num_convs=1, flow=flow) for flow in (False, True)]
    made[0].build((1, 2, 7, 7, 5))
    made[1].build(((1, 2, 7, 7, 4), (1, 2, 7, 7, 4)))
    return made


def test_one_logit_of_each_box_is_that_of_all_and_so_are_its_gradients(heads):
    head, pooled, weight = heads[0], values(0, 1, 2, 7, 7, 5), values(1, 1, 2, 14, 14)
    columns = tf.constant([[3, 1]])
    results = []
    for one in (False, True):
        with tf.GradientTape() as tape:
            logits = head(pooled, columns=columns if one else None)[1]
            if not one:
                logits = tf.gather(logits, columns, axis=4, batch_dims=2)
            loss = tf.reduce_sum(logits * weight)
        gradients = tape.gradient(loss, [compat.variable_value(v) for v in head.weights])
        results.append([logits, *[tf.convert_to_tensor(g) for g in gradients]])
    for all_of_them, one in zip(*results):
        np.testing.assert_allclose(one, all_of_them, rtol=1e-4, atol=1e-5)


def test_flow_adds_the_features_of_the_head_before(heads):
    pooled, before = values(0, 1, 2, 7, 7, 4), values(1, 1, 2, 7, 7, 4)
    head = heads[1]
    kernel, bias = (np.asarray(v) for v in (head.flow_conv.kernel, head.flow_conv.bias))
    added = np.maximum(before.numpy() @ kernel[0, 0] + bias, 0)
    first = MaskHead(3, filters=4, num_convs=1)
    first.build(pooled.shape)
    for path, variable in named_variables(first).items():
        variable.assign(named_variables(head)[path])
    for got, want in zip(head((pooled, before)), first(pooled + added)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def batch_and_samples():
    mask = np.zeros((32, 32), bool)
    mask[4:20, 6:18] = True
    packed = [pack_masks([mask, None]), pack_masks([~mask, mask])]
    length = max(len(bitmaps) for bitmaps, _, _ in packed)
    bitmaps = [np.pad(p[0], (0, length - len(p[0]))) for p in packed]
    batch = {
        "bitmaps": tf.constant(np.stack(bitmaps)),
        "frames": tf.constant(np.stack([p[1] for p in packed])),
        "offsets": tf.constant(np.stack([p[2] for p in packed])),
        "image_sizes": tf.constant([[32, 32], [32, 32]]),
    }
    boxes = np.array([[[6, 4, 18, 20], [0, 0, 30, 30], [2, 2, 9, 9]]] * 2, np.float32)
    matches = tf.constant([[0, 1, BACKGROUND], [1, 0, IGNORED]])
    return batch, {"boxes": tf.constant(boxes), "matches": matches}


def test_loss_is_the_mean_over_the_positives_that_have_a_mask():
    branch = MaskBranch(RoIAlign(size=7), [])
    batch, samples = batch_and_samples()
    logits = values(3, 2, 3, 14, 14)
    targets = branch.targets(samples, batch).numpy()
    assert targets[0, 0].all() and 0 < targets[1, 1].mean() < 1
    entropies = np.log1p(np.exp(-np.where(targets, logits, -logits)))
    learnt = [entropies[0, 0], entropies[1, 0], entropies[1, 1]]  # entry [0, 1] has no mask
    np.testing.assert_allclose(branch.loss(logits, samples, batch), np.mean(learnt), rtol=1e-5)


def test_without_a_mask_to_learn_the_loss_is_zero():
    branch = MaskBranch(RoIAlign(size=7), [])
    batch, samples = batch_and_samples()
    samples["matches"] = tf.constant([[1, BACKGROUND, IGNORED], [IGNORED] * 3])
    logits = values(3, 2, 3, 14, 14)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = branch.loss(logits, samples, batch)
    assert float(loss) == 0.0
    assert not np.any(tape.gradient(loss, logits))
