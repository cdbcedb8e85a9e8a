"""Random damage of every file of a run directory.

Either the right result or one message, and no other file is changed. What is left of a text may
still be a valid one, as a name with another letter: that is taken as it now stands.
"""

import json
import re
import shutil
import sys

import numpy as np
import pytest

from sepc_tf import runs
from sepc_tf.checkpoints.variables import named_variables, read_variables
from sepc_tf.config import config_to_dict
from sepc_tf.config_files import parse_yaml
from sepc_tf.errors import UserError
from sepc_tf.train import train
from sepc_tf.training.checkpoints import read_checkpoint, read_latest, section, step_files

pytestmark = pytest.mark.reliability

UNSAFE = re.compile(r"Traceback|weights.only|allow_pickle|set_int_max", re.IGNORECASE)


def damaged(content, other, rng):
    """The bytes of a file after an accident, and its name."""
    kind = rng.choice(["bits", "bytes", "cut", "emptied", "swapped", "zeros"])
    content = bytearray(content)
    places = rng.integers(len(content), size=rng.integers(1, 6))
    if kind == "bits":
        for place in places:
            content[place] ^= 1 << rng.integers(8)
    elif kind == "bytes":
        for place in places:
            content[place] = rng.integers(256)
    elif kind == "cut":
        del content[rng.integers(len(content)) :]
    elif kind == "emptied":
        content.clear()
    elif kind == "swapped":
        content = other
    else:  # as some file systems leave a file after a power failure
        content[rng.integers(len(content)) :] = b""
        content += bytes(4096)
    return bytes(content), kind


def files_of(run_dir):
    return sorted(
        path
        for path in run_dir.rglob("*")
        if path.is_file() and path.name != ".lock" and "tensorboard" not in path.parts
    )


def contents(run_dir):
    return {path: path.read_bytes() for path in files_of(run_dir)}


@pytest.fixture
def one_detector(monkeypatch):
    """Builds a detector once for each config: what is tried is the reading, not the building."""
    built = {}
    build = runs.build_detector

    def cached(config, num_classes, *arguments):
        key = repr((config, num_classes, arguments))
        if key not in built:
            built[key] = build(config, num_classes, *arguments)
        return built[key]

    monkeypatch.setattr(runs, "build_detector", cached)
    # `sepc_tf.train` is the function of that name.
    monkeypatch.setattr(sys.modules["sepc_tf.train"], "build_detector", cached)


def message_of(error, run_dir):
    text = str(error)
    assert text and not UNSAFE.search(text), text
    assert str(run_dir) in text, f"names the file: {text}"


def check_loaded(run, run_dir, good):
    """The weights are those that were saved; the texts are read as they stand."""
    expected = read_checkpoint(good / "checkpoints" / run.checkpoint.name)[0]
    expected = section(expected, "ema") or section(expected, "model")
    for name, value in read_variables(named_variables(run.detector)).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert run.categories == json.loads((run_dir / "categories.json").read_text())
    now = parse_yaml((run_dir / "config.yaml").read_text())
    now["detector"]["backbone"]["weights"] = None
    assert config_to_dict(run.config).items() >= now.items()


def test_random_damage_is_survived_or_told(whole, config, tmp_path, tries, figures, one_detector):
    rng = np.random.default_rng(0)
    names = [path.relative_to(whole) for path in files_of(whole)]
    assert {path.name for path in names} >= {
        "config.yaml", "categories.json", "data.json", "environment.json", "history.json",
        "best.npz",
    }  # fmt: skip
    good_steps = {step: read_checkpoint(path) for step, path in step_files(whole / "checkpoints")}
    good_history = json.loads((whole / "history.json").read_text())
    count, right, told = tries(len(names) * 2), 0, 0
    for number in range(count):
        run_dir = shutil.copytree(whole, tmp_path / "run")
        name = names[number % len(names)]
        other = (whole / names[rng.integers(len(names))]).read_bytes()
        content, kind = damaged((whole / name).read_bytes(), other, rng)
        (run_dir / name).write_bytes(content)
        before = contents(run_dir)
        case = f"{number}: {name} {kind}"

        for checkpoint in ("best", "last"):
            try:
                check_loaded(runs.load_run(run_dir, checkpoint), run_dir, whole)
                right += 1
            except UserError as error:
                message_of(error, run_dir)
                told += 1
        assert contents(run_dir) == before, f"{case}: loading changed a file"

        if name.name.startswith("step_"):
            arrays, meta = read_latest(run_dir / "checkpoints", lambda text: None)
            expected, _ = good_steps[meta["step"]]
            for key, value in expected.items():
                np.testing.assert_array_equal(arrays[key], value, err_msg=case)
            right += 1
        else:
            try:
                history = train(config, run_dir)
                assert history[-1]["step"] == good_history[-1]["step"], case
                assert history[-1]["AP"] == pytest.approx(good_history[-1]["AP"]), case
                right += 1
            except UserError as error:
                message_of(error, run_dir)
                told += 1
            after = contents(run_dir)
            changed = {path for path in before if after.get(path) != before[path]}
            written_anew = {run_dir / name, run_dir / "environment.json"}  # by every start
            assert changed <= written_anew, f"{case}: a good file was changed"
        shutil.rmtree(run_dir)
    assert right and told
    figures("damaged files: loaded twice, continued", 3 * count, right + told, f"{told} told")
