"""`sepc-tf configs`: what it prints, what it copies."""

import subprocess
import sys
from pathlib import Path

import pytest

from sepc_tf.cli import main
from sepc_tf.config import load_config

pytestmark = pytest.mark.same_on_both_stacks

FOLDER = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_list_prints_one_name_a_line(capsys):
    assert main(["configs", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == NAMES


def test_show_prints_the_file_and_then_what_it_inherits_from(capsys):
    assert main(["configs", "show", "retinanet_r50_sepc_1x"]) == 0
    out = capsys.readouterr().out
    files = [FOLDER / "retinanet_r50_sepc_1x.yaml", *(FOLDER / "_base_").glob("retinanet*")]
    places = [out.index(file.read_text()) for file in files]
    assert places == sorted(places)


def test_show_resolved_is_the_whole_config(capsys, tmp_path):
    assert main(["configs", "show", "fsaf_r50_sepc_1x", "--resolved"]) == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "all.yaml") == load_config(FOLDER / "fsaf_r50_sepc_1x.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_works_where_it_is(name, tmp_path, capsys):
    assert main(["configs", "copy", name, str(tmp_path / "mine")]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert printed[-1] == tmp_path / f"mine/{name}.yaml" and all(p.is_file() for p in printed)
    assert load_config(printed[-1]) == load_config(FOLDER / f"{name}.yaml")


def test_copy_goes_here_and_overwrites_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "copy", "demo_sepc"]) == 0
    assert main(["configs", "copy", "demo_baseline"]) == 0, "the same base once more"
    Path("demo_sepc.yaml").write_text("train: {epochs: 1}")
    assert main(["configs", "copy", "demo_sepc"]) == 2
    assert "demo_sepc.yaml exists and differs" in capsys.readouterr().err
    assert Path("demo_sepc.yaml").read_text() == "train: {epochs: 1}"


def test_a_reader_may_stop_reading():
    """As `head` does: no traceback, and the exit status of a broken pipe."""
    command = [sys.executable, "-m", "sepc_tf", "configs", "show", "demo_sepc"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)
