"""The history of metrics and the best weights, kept through damage and signals."""

import json
import os
import signal

import numpy as np
import pytest

from sepc_tf.errors import Terminated
from sepc_tf.training.checkpoints import (
    read_checkpoint,
    read_latest,
    read_meta,
    section,
    step_files,
    write_checkpoint,
)
from sepc_tf.training.evaluation import Evaluation
from sepc_tf.training.saving import Checkpoints
from sepc_tf.training.state import RunState
from sepc_tf.training.termination import Termination

ENTRY = {"epoch": 1, "step": 2, "seconds": 3.0, "AP": 0.5, "AP50": 0.7, "AP75": 0.1}


@pytest.fixture
def evaluation(model, tmp_path):
    """Makes an `Evaluation` of a run of 2 steps an epoch that finds the given APs."""

    def make(*scores, step=0, every=1):
        state = RunState(steps_per_epoch=2, step=step)
        checkpoints = Checkpoints(state, model, tmp_path / "checkpoints", every=100, keep=1)
        scores = iter(scores)

        def evaluate():
            return {"AP": next(scores), "AP50": 0.0, "AP75": 0.0}

        return Evaluation(state, evaluate, checkpoints, tmp_path / "history.json", every, 5)

    return make


def test_evaluation_keeps_history_and_best(model, set_kernel, evaluation, tmp_path):
    evaluation = evaluation(0.3, 0.5, 0.4, every=2)
    evaluation.restore()
    for step in range(1, 11):
        evaluation.state.step = step
        set_kernel(model, step)
        evaluation.evaluate_if_due()
        evaluation.evaluate_if_due()  # a second call at the same step does nothing
    history = json.loads((tmp_path / "history.json").read_text())
    assert [(entry["epoch"], entry["AP"]) for entry in history] == [(2, 0.3), (4, 0.5), (5, 0.4)]
    arrays, meta = read_checkpoint(tmp_path / "checkpoints/best.npz")
    assert meta["step"] == 8 and section(arrays, "model")["dense/kernel"].item() == 8.0
    # best.npz is none to continue from
    assert read_latest(tmp_path / "checkpoints", print) is None


def test_a_continued_run_knows_its_history_up_to_its_step(evaluation, tmp_path):
    later = {**ENTRY, "epoch": 2, "step": 4}
    (tmp_path / "history.json").write_text(json.dumps([ENTRY, later]))
    continued = evaluation(step=2)
    continued.restore()
    assert continued.state.history == [ENTRY]


@pytest.mark.parametrize(
    "content",
    ["", json.dumps([ENTRY])[:-9], "[3]", '{"AP": 1}', '[{"epoch": 1}]', "[" * 100_000],
)
def test_a_damaged_or_foreign_history_does_not_cost_the_best_weights(
    model, set_kernel, evaluation, tmp_path, caplog, content
):
    first = evaluation(0.5)
    first.state.step = 2
    set_kernel(model, 2)
    first.evaluate_if_due()
    (tmp_path / "history.json").write_text(content)

    continued = evaluation(0.4, step=2)
    continued.restore()
    assert "history.json cannot be read" in caplog.text
    assert (tmp_path / "history.json.damaged").read_text() == content
    assert [(entry["epoch"], entry["AP"]) for entry in continued.state.history] == [(1, 0.5)]
    continued.state.step = 4
    set_kernel(model, 4)
    continued.evaluate_if_due()
    arrays, meta = read_checkpoint(tmp_path / "checkpoints/best.npz")
    assert meta["metrics"]["AP"] == 0.5
    assert section(arrays, "model")["dense/kernel"].item() == 2.0
    history = json.loads((tmp_path / "history.json").read_text())
    assert [(entry["step"], entry["AP"]) for entry in history] == [(2, 0.5), (4, 0.4)]


def test_an_unreadable_best_is_set_aside_and_made_anew(evaluation, tmp_path, caplog):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.npz").write_bytes(b"damaged")
    (tmp_path / "history.json").write_text(json.dumps([ENTRY]))
    continued = evaluation(0.4, step=4)
    continued.restore()
    assert "best.npz cannot be read" in caplog.text
    continued.evaluate_if_due()
    assert read_meta(tmp_path / "checkpoints/best.npz")["metrics"]["AP"] == 0.4
    assert (tmp_path / "checkpoints/best.npz.damaged").read_bytes() == b"damaged"


def test_converted_weights_without_metrics_are_replaced(evaluation, tmp_path):
    path = tmp_path / "checkpoints/best.npz"
    write_checkpoint(path, {"model/a": np.ones(1)}, {"step": 0, "source": "a.pth"})
    started = evaluation(0.0)
    started.restore()
    started.state.step = 2
    started.evaluate_if_due()
    assert read_meta(path)["step"] == 2


def test_sigterm_in_an_evaluation_ends_it_at_once_with_the_epoch_saved(model, tmp_path):
    state, termination = RunState(steps_per_epoch=2), Termination()
    checkpoints = Checkpoints(state, model, tmp_path, 100, keep=2, termination=termination)

    def evaluate():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("evaluated to the end")

    evaluation = Evaluation(state, evaluate, checkpoints, tmp_path / "history.json", 1, 5)
    with pytest.raises(Terminated, match="saved step 2"), termination.listening():
        state.step = 2
        checkpoints.on_epoch_end(0)
        evaluation.on_epoch_end(0)
    assert [step for step, _ in step_files(tmp_path)] == [2]
    assert not (tmp_path / "history.json").exists()  # evaluated when the run continues
