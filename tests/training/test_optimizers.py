"""Optimizers by name, and settings that they do not have."""

import keras
import pytest

from sepc_tf.compat import KERAS_3
from sepc_tf.config import OptimizerConfig
from sepc_tf.errors import ConfigError
from sepc_tf.training.optimizers import make_optimizer


def test_sgd_has_its_momentum_and_rate():
    optimizer = make_optimizer(OptimizerConfig(name="SGD", momentum=0.8), 0.25)
    assert isinstance(optimizer, keras.optimizers.SGD)
    assert optimizer.momentum == 0.8
    assert float(optimizer.learning_rate) == 0.25
    assert not optimizer.weight_decay  # the train step's


def test_decoupled_decay_is_the_optimizers():
    config = OptimizerConfig(name="AdamW", weight_decay=0.05, decoupled_weight_decay=True)
    assert make_optimizer(config, 0.1).weight_decay == 0.05


def test_further_options_are_handed_on():
    optimizer = make_optimizer(OptimizerConfig(name="Adam", options={"beta_1": 0.5}), 0.1)
    assert optimizer.beta_1 == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "Sgd"}, "train.optimizer.name: 'Sgd' is none of: .*SGD"),
        ({"name": "torch>SGD"}, "expected a Keras optimizer's name or tfa>NAME"),
        ({"name": "SGD", "options": {"beta": 1}}, r"train.optimizer.options: \{'beta': 1\}"),
        ({"name": "Adam", "momentum": 0.8}, "train.optimizer.momentum: 0.8 has no effect on Adam"),
        ({"name": "Adam", "bias_lr_mult": 2.0}, "bias_lr_mult: 2.0 has no effect on name: Adam"),
        (
            {"bias_decay_mult": 0.0, "decoupled_weight_decay": True},
            "bias_decay_mult: 0.0 has no effect on decoupled_weight_decay: true",
        ),
        (
            {"bias_decay_mult": 0.0, "weight_decay": 0.0},
            "bias_decay_mult: 0.0 has no effect on weight_decay: 0",
        ),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(OptimizerConfig(**settings), 0.1)


@pytest.mark.skipif(not KERAS_3, reason="tensorflow-addons exists for the other stack")
def test_addons_are_missed_with_a_way_out():
    with pytest.raises(ConfigError, match="use the addons stack"):
        make_optimizer(OptimizerConfig(name="tfa>SGDW"), 0.1)


@pytest.mark.skipif(KERAS_3, reason="needs tensorflow-addons")
def test_optimizers_of_tensorflow_addons():
    config = OptimizerConfig(name="tfa>SGDW", weight_decay=0.01, decoupled_weight_decay=True)
    assert float(make_optimizer(config, 0.1).get_config()["weight_decay"]) == 0.01
    lookahead = make_optimizer(OptimizerConfig(name="tfa>Lookahead", momentum=0.7), 0.1)
    inner = lookahead.get_config()["optimizer"]["config"]
    assert (inner["momentum"], inner["learning_rate"]) == (0.7, 0.1)
    for settings, message in (
        (
            {"momentum": 0.7, "options": {"optimizer": "Adam"}},
            "momentum: 0.7 has no effect on Adam",
        ),
        (
            {"decoupled_weight_decay": True},
            "decoupled_weight_decay: True has no effect on tfa>Look",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            make_optimizer(OptimizerConfig(name="tfa>Lookahead", **settings), 0.1)
