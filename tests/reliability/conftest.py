"""What the campaign's tests share: how often to try, the figures, a finished run to damage."""

import keras
import pytest
from tiny_run import tiny_config

from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.train import train


@pytest.fixture(scope="session", autouse=True)
def default_stack():
    if keras.__version__.startswith("2."):
        pytest.skip("the campaign is run on the default stack")


@pytest.fixture
def tries(request):
    """Multiplies a number of tries by the option --reliability-tries."""
    return lambda count: count * request.config.getoption("--reliability-tries")


@pytest.fixture
def figures(record_property):
    """Notes a line for the end of the session; nothing may be lost."""

    def note(what, tried, survived, remark=""):
        record_property(
            "reliability", f"{what:45} {tried:6} {survived:6} {tried - survived:6} {remark}"
        )
        assert survived == tried

    return note


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_demo_dataset(tmp_path_factory.mktemp("demo") / "data", train_images=8, val_images=4)


@pytest.fixture(scope="session")
def config(data):
    return tiny_config(
        data,
        "detector.score_threshold=0.0",
        "train.deterministic=true",
        "train.epochs=2",
        "train.checkpoint_every=1",
        "train.keep_checkpoints=3",
        "train.evaluate_every=2",
        "train.ema_decay=0.9",
    )


@pytest.fixture(scope="session")
def whole(config, tmp_path_factory):
    """The directory of a run that was never disturbed."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    train(config, run_dir)
    return run_dir
