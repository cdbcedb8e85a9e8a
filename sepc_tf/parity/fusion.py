"""Family of cases: necks that make a pyramid of a backbone's maps, alone or one after the other."""

from __future__ import annotations

import keras

from sepc_tf.parity.comparing import NETWORK_TOLERANCE, Comparison
from sepc_tf.parity.golden import level_inputs
from sepc_tf.parity.modules import check_module
from sepc_tf.zoo import NECKS


def check_of(config: dict):
    """(check, tolerance) of a case with this config, None if it is of another family."""
    necks = neck_list(config)
    if necks and all(isinstance(neck, dict) and neck.get("type") in SETTINGS for neck in necks):
        return check_necks, NETWORK_TOLERANCE
    return None


def neck_list(config: dict) -> list:
    """What a case is about, as the list of mmdetection necks that it may be."""
    model = config.get("model", config.get("neck", []))
    return model if isinstance(model, list) else [model]


def check_necks(case, comparison: Comparison) -> None:
    """One neck or several: outputs, gradients, in training running statistics."""
    configs = [neck_config(neck) for neck in neck_list(case.config)]

    def make_layer(dtype):
        necks = [
            NECKS[config["type"]](
                **{name: value for name, value in config.items() if name != "type"},
                dtype=dtype,
                name=config["type"],
            )
            for config in configs
        ]
        return necks[0] if len(necks) == 1 else Stack(necks, dtype=dtype)

    check_module(case, comparison, make_layer, {"y": level_inputs(case, "cot")})


def fpn_settings(neck):
    """`FPNOptions` of an mmdetection FPN, as a dict."""
    convolved = "c5" if neck.get("extra_convs_on_inputs", True) else "p5"
    return {
        "filters": neck["out_channels"],
        "num_levels": neck["num_outs"],
        "min_level": neck.get("start_level", 0) + 2,
        "extra_levels": convolved if neck.get("add_extra_convs") else "pool",
        "extra_relu": neck.get("relu_before_extra_convs", False),
        "norm": "group" if neck.get("norm_cfg") else None,
    }


# mmdetection's name of a neck -> (ours in `zoo.NECKS`, function that gives its settings)
SETTINGS = {"FPN": ("fpn", fpn_settings)}


def neck_config(neck: dict) -> dict:
    """An entry of `detector.necks` from mmdetection's `neck`, or one of its list of them."""
    kind, settings = SETTINGS[neck["type"]]
    return {"type": kind, **settings(neck)}


class Stack(keras.layers.Layer):
    """Necks one after the other; their parameters are named as those of mmdetection's list."""

    def __init__(self, necks, **kwargs):
        super().__init__(**kwargs)
        self.necks = necks

    @property
    def parts(self):
        return {neck.name: neck for neck in self.necks}

    def build(self, shapes):
        for neck in self.necks:
            neck.build(shapes)
            shapes = neck.compute_output_shape(shapes)
        self.built = True

    def call(self, maps, training=None):
        for neck in self.necks:
            maps = neck(maps, training=training)
        return maps
