"""Box codes: inverse of each other, and values by hand."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.ops.coders import BoxCoder, TBLRCoder


def random_boxes(seed, integers=False):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (20, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(3, 60, (20, 2))], -1)
    return tf.constant(np.round(boxes) if integers else boxes, tf.float32)


@pytest.mark.parametrize("convention", ["modern", "mmdet1"])
@pytest.mark.parametrize("cls", [BoxCoder, TBLRCoder])
def test_decode_is_the_inverse_of_encode(cls, convention):
    anchors, boxes = random_boxes(0), random_boxes(1)
    options = {"stds": (0.1, 0.1, 0.2, 0.2)} if cls is BoxCoder else {}
    coder = cls(convention=convention, **options)
    np.testing.assert_allclose(
        coder.decode(anchors, coder.encode(anchors, boxes)), boxes, atol=1e-4
    )
    assert cls.from_config(coder.get_config()) == coder


def test_box_code_by_hand():
    anchor, box = tf.constant([[0.0, 0.0, 9.0, 19.0]]), tf.constant([[5.0, 0.0, 24.0, 9.0]])
    # With the last pixel: anchor 10 x 20 around (4.5, 9.5), box 20 x 10 around (14.5, 4.5).
    want = [[1.0, -0.25, np.log(2), -np.log(2)]]
    np.testing.assert_allclose(BoxCoder(convention="mmdet1").encode(anchor, box), want, rtol=1e-6)
    longer = tf.constant([[0.0, 0.0, 1.0, 1.0]])
    np.testing.assert_allclose(BoxCoder().encode(anchor + longer, box + longer), want, rtol=1e-6)
    coder = BoxCoder(stds=(0.1, 0.1, 0.2, 0.2))
    got = coder.encode(anchor + longer, box + longer)
    np.testing.assert_allclose(got, np.array(want) / [0.1, 0.1, 0.2, 0.2], rtol=1e-6)


def test_side_ratio_is_limited():
    box = BoxCoder().decode(tf.constant([[0.0, 0.0, 16.0, 16.0]]), tf.constant([[0.0, 0, 99, -99]]))
    np.testing.assert_allclose(box, [[8 - 500, 8 - 0.128, 8 + 500, 8 + 0.128]], rtol=1e-5)


def test_tblr_code_by_hand():
    anchor, box = tf.constant([[8.0, 8.0, 15.0, 15.0]]), tf.constant([[4.0, 6.0, 19.0, 29.0]])
    # Centre (12, 12): 18 to the bottom (with the last pixel), 6 to the top, 8 left, 8 right.
    got = TBLRCoder(convention="mmdet1").encode(anchor, box)
    np.testing.assert_allclose(got, [[18 / 8, 6 / 8, 1.0, 1.0]])


def test_bad_stds():
    with pytest.raises(ValueError, match="four positive numbers"):
        BoxCoder(stds=(0.1, 0.1, 0.2))
