"""The C++ operations: built once, shared by processes, and done without where they cannot be."""

import errno
import logging
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    native._built.cache_clear()


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


def assert_falls_back(caplog, *messages):
    """The portable form, one log line that holds the messages, the same asked for by name."""
    with caplog.at_level(logging.WARNING, logger="sepc_tf"):
        for _ in range(2):
            assert deform_conv2d(*ARGUMENTS).shape == (1, 4, 4, 5)
            assert deform_conv2d_implementation() == "xla"
    (record,) = [record for record in own(caplog) if record.levelno >= logging.WARNING]
    with pytest.raises(native.NativeUnavailableError) as error:
        deform_conv2d(*ARGUMENTS, implementation="native")
    for message in messages:
        assert message in record.getMessage()
        assert message in str(error.value)


def unwritable(folder):
    """A place where not even root makes a folder."""
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc on this system")
    return Path("/proc/self")


def a_file(folder):
    (folder / "file").write_text("")
    return folder / "file"


@pytest.mark.parametrize("place", [a_file, unwritable])
def test_a_folder_that_cannot_be_made_falls_back(tmp_path, monkeypatch, caplog, place):
    compiler(tmp_path, monkeypatch, 'printf library > "$output"')
    monkeypatch.setenv("XDG_CACHE_HOME", str(place(tmp_path)))
    assert_falls_back(caplog, "failed to build or load", str(place(tmp_path) / "sepc_tf"))
    assert not (tmp_path / "calls").exists()


def test_a_read_only_folder_falls_back(tmp_path, monkeypatch, caplog):
    compiler(tmp_path, monkeypatch, 'printf library > "$output"')

    def refused(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "the folder")

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    assert_falls_back(caplog, "failed to build or load", "Read-only file system: 'the folder'")


def test_a_full_disk_falls_back(tmp_path, monkeypatch, caplog):
    # As GNU ld reports it: two lines, the second of which says nothing.
    compiler(
        tmp_path,
        monkeypatch,
        """reason=$(cat /dev/zero 2>&1 >/dev/full | sed 's/.*: //')
        echo "/usr/bin/ld: final link failed: $reason" >&2
        echo "collect2: error: ld returned 1 exit status" >&2; exit 1""",
    )
    assert_falls_back(caplog, "compiler.sh failed", "final link failed: No space left on device")
    assert not list((tmp_path / "cache" / "sepc_tf").glob("*.so"))


def test_without_a_home_the_library_is_among_the_temporary_files(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, 'printf library > "$output"')
    without_home(tmp_path, monkeypatch)
    library = native._built()
    assert library.parent == tmp_path / f"sepc_tf-{os.geteuid()}"
    assert library.read_text() == "library"


def test_without_a_home_a_temporary_folder_of_another_user_falls_back(
    tmp_path, monkeypatch, caplog
):
    compiler(tmp_path, monkeypatch, 'printf library > "$output"')
    without_home(tmp_path, monkeypatch)
    another_user(monkeypatch)
    (tmp_path / f"sepc_tf-{os.geteuid()}").mkdir(mode=0o700)
    assert_falls_back(caplog, f"{tmp_path}/sepc_tf-", "belongs to user", "set XDG_CACHE_HOME")
    assert not (tmp_path / "calls").exists()


def without_home(folder, monkeypatch):
    """No HOME, nobody in the password file, `folder` for temporary files."""

    def nobody(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


def another_user(monkeypatch):
    """From now on this process is of a user to whom nothing belongs."""
    user = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)


def test_what_is_made_is_private_whatever_the_umask(tmp_path, monkeypatch):
    # GNU ld removes the file it is to write and makes a new one.
    compiler(tmp_path, monkeypatch, 'rm "$output"; printf library > "$output"')
    mask = os.umask(0o002)
    try:
        library = native._built()
    finally:
        os.umask(mask)
    for path in (library.parent, library):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch, caplog, made):
    compiler(tmp_path, monkeypatch, 'printf library > "$output"')
    (tmp_path / "cache" / "sepc_tf").mkdir(parents=True, mode=0o700)
    if made:
        native._built()
        clear()
    another_user(monkeypatch)
    assert_falls_back(caplog, str(tmp_path / "cache" / "sepc_tf"), "belongs to user", "remove it")


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
@pytest.mark.parametrize("which", ["folder", "library"])
def test_what_others_can_write_is_refused(tmp_path, monkeypatch, caplog, which, mode):
    compiler(tmp_path, monkeypatch, 'printf library > "$output"')
    library = native._built()
    clear()
    path = library.parent if which == "folder" else library
    path.chmod(mode)
    assert_falls_back(caplog, f"{path} can be written by others (mode {mode:o})", "chmod go-w")


@pytest.mark.parametrize("which", ["folder", "library"])
def test_a_link_of_another_user_is_refused(tmp_path, monkeypatch, caplog, which):
    compiler(tmp_path, monkeypatch, 'printf library > "$output"')
    library = native._built()
    clear()
    path = library.parent if which == "folder" else library
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert native._built() == library  # a link of one's own is fine
    clear()
    if os.geteuid() != 0:
        pytest.skip("only root can give a link to another user")
    os.lchown(path, 12345, -1)
    assert_falls_back(caplog, f"{path} belongs to user 12345")


def test_a_user_without_home_computes_in_a_process_of_its_own(tmp_path):
    """As `docker run --user 12345`: no HOME, and no such user in the password file."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process as another user")
    code = """if True:
        import os, pathlib, sys, tempfile
        tempfile.tempdir = sys.argv[1]
        os.environ.pop("HOME")
        import tensorflow as tf
        from sepc_tf.ops import native
        os.setgid(54321), os.setuid(54321)
        try:
            pathlib.Path.home()
        except RuntimeError:
            print("no home")
        print(native._folder())
        print(native.available())
        """
    environment = {k: v for k, v in os.environ.items() if k != "XDG_CACHE_HOME"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert result.stdout.split("\n")[:2] == ["no home", f"{tmp_path}/sepc_tf-54321"]
    # The temporary folder of this test is root's: nothing can be made there.
    assert result.stdout.split("\n")[2] == "False", result.stderr
    assert "Permission denied" in result.stderr


def test_switched_off_it_is_not_even_built(tmp_path, monkeypatch, caplog):
    compiler(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setenv("SEPC_TF_NATIVE", "0")
    assert deform_conv2d_implementation() == "xla"
    assert not (tmp_path / "calls").exists()
    assert not own(caplog)
    with pytest.raises(native.NativeUnavailableError, match="SEPC_TF_NATIVE=0"):
        deform_conv2d_implementation("native")
