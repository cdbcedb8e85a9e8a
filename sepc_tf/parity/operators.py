"""Family of cases: single operators, deformable convolution and integrated normalisation."""

from __future__ import annotations

import tensorflow as tf

from sepc_tf.checkpoints import import_state_dict
from sepc_tf.layers import IntegratedBatchNormalization
from sepc_tf.ops.deform_conv2d import deform_conv2d
from sepc_tf.parity.comparing import OPERATOR_TOLERANCE, Comparison
from sepc_tf.parity.golden import level_inputs, nchw, nhwc
from sepc_tf.parity.modules import differentiation


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
    if "deformable_groups" in config:
        return check_deform_conv, OPERATOR_TOLERANCE
    if "level_affine" in config:
        return check_integrated_norm, OPERATOR_TOLERANCE
    return None


def check_deform_conv(
    case, comparison: Comparison, implementation: str = "auto", compiled: bool | None = None
) -> None:
    """Deformable convolution: forward and all three gradients.

    Args:
        case, comparison: as in `check_case`.
        implementation: of `deform_conv2d`.
        compiled: None runs op by op, False as a graph, True compiled by XLA.
    """
    inputs = {key.rpartition(".")[2]: value for key, value in case.inputs().items()}
    config = case.config
    x, offset, cotangent = (nhwc(inputs[key]) for key in ("x", "offset", "cot"))
    kernel = tf.constant(inputs["weight"].transpose(2, 3, 1, 0))

    def run(x, offset, kernel, cotangent):
        with tf.GradientTape() as tape:
            tape.watch([x, offset, kernel])
            y = deform_conv2d(
                x,
                offset,
                kernel,
                strides=config["stride"],
                padding=config["padding"],
                dilations=config["dilation"],
                groups=config["groups"],
                offset_groups=config["deformable_groups"],
                implementation=implementation,
            )
        return y, *tape.gradient(y, [x, offset, kernel], cotangent)

    if compiled is not None:
        run = tf.function(run, autograph=False, jit_compile=compiled)
    y, grad_x, grad_offset, grad_kernel = run(x, offset, kernel, cotangent)
    comparison.output("out.y", nchw(y))
    comparison.output("out.grad_x", nchw(grad_x))
    comparison.output("out.grad_offset", nchw(grad_offset))
    comparison.output("out.grad_weight", grad_kernel.numpy().transpose(3, 2, 0, 1))


def check_integrated_norm(case, comparison: Comparison) -> None:
    """iBN over the levels: outputs, gradients, running statistics."""
    # Level i enters as x (1 + i) + 0.5 i; the stored gradients are those of x.
    pyramid = [x * (1.0 + i) + 0.5 * i for i, x in enumerate(level_inputs(case, "x"))]
    norm = IntegratedBatchNormalization(
        momentum=1 - case.config["momentum"], epsilon=case.config["eps"]
    )
    norm.build([x.shape for x in pyramid])
    import_state_dict(norm, case.params())
    training = case.config["mode"] == "train"
    result = differentiation(norm, level_inputs(case, "cot"), training)(pyramid)
    for i, (y, gradient) in enumerate(zip(result["outputs"], result["input_gradients"])):
        comparison.output(f"out.y.{i}", nchw(y))
        comparison.output(f"out.grad_x.{i}", nchw(gradient) * (1 + i))
    comparison.output("out.grad_weight", result["gradients"]["gamma"])
    comparison.output("out.grad_bias", result["gradients"]["beta"])
    comparison.output("out.running_mean", norm.moving_mean)
    comparison.output("out.running_var", norm.moving_variance)
