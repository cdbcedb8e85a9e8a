"""The forms the deformable convolution is timed against compute the same function."""

import numpy as np
import pytest
import tensorflow as tf

from sepc_tf.benchmark import deformable, markdown
from sepc_tf.ops.deform_conv2d import deform_conv2d

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(deformable, "CHANNELS", 8)


def ours(x, offset, kernel, stride, upstream):
    with tf.GradientTape() as tape:
        tape.watch([x, offset, kernel])
        y = deform_conv2d(x, offset, kernel, strides=stride, implementation="xla")
    return y, tape.gradient(y, [x, offset, kernel], upstream)


@pytest.mark.parametrize("stride", [1, 2])
def test_torch_form(small, stride):
    pytest.importorskip("torch", reason="the peer is PyTorch")
    x, offset, kernel, upstream = deformable._inputs(2, 9, 12, stride)
    y, gradients = ours(x, offset, kernel, stride, upstream)
    theirs = deformable._torch_form(x, offset, kernel, stride, upstream, backward=False)()
    theirs = theirs.numpy().reshape(2, 8, *y.shape[1:3]).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(theirs, y, atol=1e-5)
    grad_x, grad_offset, grad_kernel = (
        g.numpy() for g in deformable._torch_form(x, offset, kernel, stride, upstream, True)()
    )
    np.testing.assert_allclose(grad_x.transpose(0, 2, 3, 1), gradients[0], atol=1e-5)
    np.testing.assert_allclose(grad_offset, gradients[1], atol=1e-4)
    oihw = grad_kernel.reshape(8, 8, 3, 3)
    np.testing.assert_allclose(oihw.transpose(2, 3, 1, 0), gradients[2], atol=1e-4)


def test_resampler_form(small):
    pytest.importorskip("tensorflow_addons", reason="the peer is tensorflow-addons")
    x, offset, kernel, upstream = deformable._inputs(2, 9, 12, 1)
    y, _ = ours(x, offset, kernel, 1, upstream)
    theirs = deformable.resampler_deform_conv2d(x, offset, kernel, 1)
    np.testing.assert_allclose(theirs, y, atol=1e-5)


def test_gather_nd_form_inside_the_map(small):
    x, offset, kernel, upstream = deformable._inputs(2, 9, 12, 1)
    y, _ = ours(x, 0.1 * tf.tanh(offset), kernel, 1, upstream)
    theirs = deformable.gather_nd_deform_conv2d(x, 0.1 * tf.tanh(offset), kernel, 1)
    # It clips at the border, so the outer two rows and columns differ.
    np.testing.assert_allclose(theirs[:, 2:-2, 2:-2], y[:, 2:-2, 2:-2], atol=1e-5)


def test_a_report_becomes_tables():
    times = [
        {"map": "P4", "batch": 1, "backward": backward, "form": form, "ms": 2.0, "ratio": ratio,
         "ratio_of_best": 1.0}
        for backward in (False, True)
        for form, ratio in (("conv2d", 1.0), ("conv2d, jit", 1.1), ("native", 1.05))
    ]  # fmt: skip
    environment = {"tensorflow": "2", "python": "3", "processor": "p", "cores": 2,
                   "load_average": 0.0}  # fmt: skip
    memory = [{"form": "native", "mb": None}]
    neck = [{"form": "auto", "first": 5.0, "second": 1.0}]
    text = markdown({"environment": environment, "times": times, "memory": memory, "neck": neck})
    assert (
        "| P4 | 1 | forward + backward | 2.00 | 1.00 (1.00) | 1.10 (1.00) | 1.05 (1.00) |" in text
    )
    assert "| native | not measured |" in text and "| auto | 5.0 s | 1.0 s |" in text
