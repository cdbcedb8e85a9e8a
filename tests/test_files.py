"""Atomic writing, and failures to write as one message."""

import errno
import os
import resource

import pytest
import tensorflow as tf

from sepc_tf.errors import OutputError
from sepc_tf.files import (
    check_writable,
    exchange,
    read_json,
    replacing,
    write_json,
    write_text,
    writing,
)

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture
def full_disk():
    """No file may grow beyond 100 bytes: the operating system's own refusal in mid-write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failure_in_mid_write_keeps_the_old_file_and_leaves_nothing(tmp_path, full_disk):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OutputError, match=r"cannot write .*a\.txt: File too large"):
        write_text(tmp_path / "a.txt", "x" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_any_exception_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.json") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert read_json(tmp_path / "a.json") == [1]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_told_with_what_is_needed_and_what_is_free(tmp_path):
    with pytest.raises(OutputError) as raised, writing(tmp_path / "a", needed=3_500_000):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = str(raised.value)
    assert message.startswith(f"cannot write {tmp_path / 'a'}: No space left on device")
    assert "3.5 MB are needed" in message and "free some space" in message


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "no room left"), "no room left .*free some"),
        (tf.errors.PermissionDeniedError(None, None, "not yours\nmore"), "not yours$"),
        (tf.errors.UnknownError(None, None, "{{node a b}} x; broken [Op:SaveV2]"), "x; broken$"),
    ],
)
def test_the_errors_of_tensorflow_become_the_same(tmp_path, error, expected):
    message = rf"cannot write .*log: {expected}"
    with pytest.raises(OutputError, match=message), writing(tmp_path / "log"):
        raise error


def test_other_errors_pass():
    with pytest.raises(ValueError, match="mine"), writing("a"):
        raise ValueError("mine")


def test_a_place_is_tried_before_the_work(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=f"cannot write {path}: .*a file stands where"):
            check_writable(path)
    with pytest.raises(OutputError, match="cannot write /proc/sepc_tf"):
        check_writable("/proc/sepc_tf")


def test_folders_are_exchanged(tmp_path):
    write_text(tmp_path / "old/text", "old")
    write_text(tmp_path / "new/text", "new")
    exchange(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "old/text").read_text() == "new"
    assert (tmp_path / "new/text").read_text() == "old"
    with pytest.raises(FileNotFoundError, match="missing"):
        exchange(tmp_path / "old", tmp_path / "missing")


@pytest.mark.parametrize("content", ["", '{"a": ', "[" * 100_000, "\xff"])
def test_damaged_json_is_one_kind_of_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")
