"""The checks of the arguments."""

import pytest
import tensorflow as tf

from sepc_tf.ops.deform_conv2d import deform_conv2d

X, OFFSET, KERNEL = tf.zeros([1, 5, 6, 4]), tf.zeros([1, 5, 6, 18]), tf.zeros([3, 3, 4, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": tf.zeros([5, 6, 4])}, "x: expected a tensor of rank 4"),
        ({"offset": tf.zeros([1, 5, 6, 17])}, r"offset: expected shape \(1, 5, 6, 18\).*17"),
        ({"offset": tf.zeros([1, 6, 5, 18])}, r"offset: expected shape \(1, 5, 6, 18\)"),
        ({"offset": tf.zeros([2, 5, 6, 18])}, r"offset: expected shape \(1, 5, 6, 18\)"),
        ({"kernel": tf.zeros([3, 3, 3, 2])}, "kernel: expected 4 input channels"),
        ({"kernel": tf.zeros([3, 3, 2, 3]), "groups": 2}, "kernel: expected a number of outputs"),
        ({"mask": tf.zeros([1, 5, 6, 18])}, r"mask: expected shape \(1, 5, 6, 9\)"),
        ({"groups": 3}, "groups: expected a positive divisor of the 4 channels"),
        ({"offset_groups": 0}, "offset_groups: expected a positive divisor"),
        ({"strides": 0}, "strides: expected a positive int"),
        ({"dilations": (1, 2, 3)}, "dilations: expected a positive int"),
        ({"padding": "full"}, 'padding: expected "same"'),
        ({"padding": -1}, 'padding: expected "same"'),
        ({"padding": "valid", "dilations": 4}, "x: expected a map at least as large"),
        ({"implementation": "cuda"}, "implementation: expected one of"),
    ],
)
def test_misfits_name_the_argument(changes, message):
    values = {"x": X, "offset": OFFSET, "kernel": KERNEL, **changes}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(values.pop("x"), values.pop("offset"), values.pop("kernel"), **values)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="x: expected a floating type, got int32"):
        deform_conv2d(tf.zeros([1, 5, 6, 4], tf.int32), OFFSET, KERNEL)
