"""A disk that is full: the operating system refuses to let a file grow (RLIMIT_FSIZE)."""

import contextlib
import resource
import shutil

import numpy as np
import pytest

from sepc_tf.errors import OutputError
from sepc_tf.export import export
from sepc_tf.predict import predict_files
from sepc_tf.runs import load_run
from sepc_tf.train import train
from sepc_tf.training.checkpoints import read_checkpoint, read_latest, step_files, write_checkpoint

pytestmark = pytest.mark.reliability


@contextlib.contextmanager
def no_file_above(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_while_training(whole, config, tmp_path, figures):
    """Fails at the last step's checkpoint, and ends bit-equal when there is room again."""
    run_dir = shutil.copytree(whole, tmp_path / "run")
    (last, newest), *_ = step_files(run_dir / "checkpoints")
    expected, size = read_checkpoint(newest)[0], newest.stat().st_size
    for name in ("history.json", f"checkpoints/{newest.name}", "checkpoints/best.npz"):
        (run_dir / name).unlink()
    shutil.rmtree(run_dir / "tensorboard")
    before = contents(run_dir / "checkpoints")
    with (
        no_file_above(size // 2),
        pytest.raises(OutputError, match=rf"(?s){newest.name}: .*continues from its last check"),
    ):
        train(config, run_dir)
    assert contents(run_dir / "checkpoints") == before, "nothing is lost and nothing left over"
    train(config, run_dir)
    arrays, meta = read_latest(run_dir / "checkpoints", warn=pytest.fail)
    assert meta["step"] == last
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)
    figures("disk full while training, then bit-equal", 1, 1)


def test_while_saving_exporting_and_predicting(whole, data, tmp_path, tries, figures):
    rng = np.random.default_rng(0)
    arrays = {"model/kernel": np.zeros(10_000, np.float32)}
    write_checkpoint(tmp_path / "saved/step_1.npz", arrays, {"step": 1})
    before = contents(tmp_path / "saved")
    for _ in range(tries(50)):
        with no_file_above(int(rng.integers(1, 40_000))), pytest.raises(OutputError):
            write_checkpoint(tmp_path / "saved/step_1.npz", arrays, {"step": 1})
        assert contents(tmp_path / "saved") == before
    figures("disk full while saving", tries(50), tries(50))

    run = load_run(whole)
    exported = export(run, tmp_path / "exported/model")
    before = contents(tmp_path / "exported")
    largest = max(map(len, before.values()))
    for _ in range(tries(1)):
        limit = int(rng.integers(1, largest))
        with no_file_above(limit), pytest.raises(OutputError, match=r"cannot write .*model"):
            export(run, exported)
        assert contents(tmp_path / "exported") == before
    figures("disk full while exporting", tries(1), tries(1))

    for _ in range(tries(1)):
        limit = int(rng.integers(1, 4000))
        with no_file_above(limit), pytest.raises(OutputError, match=r"cannot write .*out"):
            predict_files(run, [data / "val"], tmp_path / "out")
    figures("disk full while predicting", tries(1), tries(1))
