"""The progress line in a log and on a terminal."""

import logging

import pytest
from rich.console import Console

from sepc_tf.training.progress import ProgressBar
from sepc_tf.training.state import RunState


def test_a_log_gets_a_line_now_and_then(caplog):
    state = RunState(steps_per_epoch=4)
    bar = ProgressBar(state, total_steps=8, batch_size=2, every=3)
    with caplog.at_level(logging.INFO, "sepc_tf"):
        bar.on_train_begin()
        for step in range(1, 9):
            state.step = step
            bar.on_train_batch_end(0, {"loss": 0.5, "non_finite": 0.0})
    assert [record.message[:19] for record in caplog.records] == [
        "epoch 1  step 3/8  ", "epoch 2  step 6/8  "
    ]  # fmt: skip
    assert all("loss 0.5000" in record.message for record in caplog.records)
    assert "non_finite" not in caplog.text and "left" in caplog.text


def test_a_terminal_is_given_back():
    bar = ProgressBar(RunState(steps_per_epoch=4), total_steps=8, batch_size=2, every=3)
    bar.console = Console(force_terminal=True, file=open("/dev/null", "w"))  # noqa: SIM115
    bar.on_train_begin()
    live = bar._bar.live
    assert live.is_started
    with pytest.raises(KeyboardInterrupt):
        try:
            raise KeyboardInterrupt
        finally:
            bar.close()
    assert not live.is_started
    bar.close()
