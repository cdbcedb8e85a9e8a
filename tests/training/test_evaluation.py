"""The history of metrics and the best weights."""

import json

from sepc_tf.training.checkpoints import read_checkpoint, read_latest, section
from sepc_tf.training.evaluation import Evaluation
from sepc_tf.training.saving import Checkpoints
from sepc_tf.training.state import RunState


def test_evaluation_keeps_history_and_best(model, set_kernel, tmp_path):
    state = RunState(steps_per_epoch=2)
    checkpoints = Checkpoints(state, model, tmp_path, every=100, keep=1)
    scores = iter([0.3, 0.5, 0.4])

    def evaluate():
        return {"AP": next(scores), "AP50": 0.0, "AP75": 0.0}

    evaluation = Evaluation(state, evaluate, checkpoints, tmp_path / "history.json", 2, 5)
    for step in range(1, 11):
        state.step = step
        set_kernel(model, step)
        evaluation.evaluate_if_due()
        evaluation.evaluate_if_due()  # a second call at the same step does nothing
    history = json.loads((tmp_path / "history.json").read_text())
    assert [(entry["epoch"], entry["AP"]) for entry in history] == [(2, 0.3), (4, 0.5), (5, 0.4)]
    arrays, meta = read_checkpoint(tmp_path / "best.npz")
    assert meta["step"] == 8 and section(arrays, "model")["dense/kernel"].item() == 8.0
    assert read_latest(tmp_path, print) is None  # best.npz is none to continue from
