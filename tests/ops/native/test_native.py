"""The C++ operations: built once, shared by processes, and done without where they cannot be."""

import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf

from sepc_tf.ops import native
from sepc_tf.ops.deform_conv2d import deform_conv2d, deform_conv2d_implementation

ARGUMENTS = (tf.ones([1, 4, 4, 2]), tf.zeros([1, 4, 4, 18]), tf.ones([3, 3, 2, 5]))


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    """Forgets what this process has loaded, and gives the test a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SEPC_TF_NATIVE", raising=False)
    clear()
    yield
    clear()


def clear():
    native.load.cache_clear()
    native.available.cache_clear()


def compiler(folder, monkeypatch, body):
    """Makes a shell script the compiler; it logs its calls, `$output` is what it has to write."""
    script = folder / "compiler.sh"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo a compiler for tests; exit 0; fi\n'
        f'echo called >> "{folder}/calls"\n'
        'while [ "$1" != -o ]; do shift; done; output="$2"\n' + body
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))


def own(caplog):
    """The records of this package; TensorFlow logs what it thinks of tracing, which is not ours."""
    return [record for record in caplog.records if record.name.startswith("sepc_tf")]


def test_builds_that_start_together_compile_once(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, 'printf half > "$output"; sleep 0.3; printf whole > "$output"')
    with ThreadPoolExecutor(4) as pool:
        libraries = {job.result() for job in [pool.submit(native._built) for _ in range(4)]}
    assert len(libraries) == 1
    assert libraries.pop().read_text() == "whole"
    assert (tmp_path / "calls").read_text() == "called\n"
    names = os.listdir(tmp_path / "cache" / "sepc_tf")
    assert sorted(name.rsplit(".", 1)[1] for name in names) == ["lock", "so"]
    assert all(f"tf{tf.__version__}" in name for name in names)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'op.cc:1: error: no such type' >&2; exit 1", "op.cc:1: error: no such type"),
        ('printf nonsense > "$output"', "failed to build or load"),
    ],
)
def test_a_failed_build_falls_back_with_one_line(tmp_path, monkeypatch, caplog, body, message):
    compiler(tmp_path, monkeypatch, body)
    with caplog.at_level(logging.WARNING, logger="sepc_tf"):
        for _ in range(2):
            assert deform_conv2d(*ARGUMENTS).shape == (1, 4, 4, 5)
            assert deform_conv2d_implementation() == "xla"
    assert len(own(caplog)) == 1
    assert message in caplog.text
    with pytest.raises(native.NativeUnavailableError, match=message):
        deform_conv2d(*ARGUMENTS, implementation="native")


def test_no_compiler_falls_back(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING, logger="sepc_tf"):
        assert deform_conv2d_implementation() == "xla"
    assert "no C++ compiler found" in caplog.text


def test_no_compiler_is_an_error_where_native_is_forced(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    monkeypatch.setenv("SEPC_TF_NATIVE", "1")
    with pytest.raises(native.NativeUnavailableError, match="no C\\+\\+ compiler found"):
        deform_conv2d(*ARGUMENTS)


def test_a_folder_that_cannot_be_written_falls_back(tmp_path, monkeypatch, caplog):
    compiler(tmp_path, monkeypatch, 'printf library > "$output"')
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="sepc_tf"):
        assert deform_conv2d_implementation() == "xla"
    assert "failed to build or load" in caplog.text


def test_switched_off_it_is_not_even_built(tmp_path, monkeypatch, caplog):
    compiler(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setenv("SEPC_TF_NATIVE", "0")
    assert deform_conv2d_implementation() == "xla"
    assert not (tmp_path / "calls").exists()
    assert not own(caplog)
    with pytest.raises(native.NativeUnavailableError, match="SEPC_TF_NATIVE=0"):
        deform_conv2d_implementation("native")
