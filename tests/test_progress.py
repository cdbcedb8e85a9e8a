import io

import pytest
import rich
from rich.console import Console

from sepc_tf import progress

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture
def clock(monkeypatch):
    """Each item takes four seconds."""
    monkeypatch.setattr(progress.time, "monotonic", iter(range(0, 1000, 4)).__next__)


def test_a_library_says_nothing(clock, capsys):
    assert list(progress.track(range(9))) == list(range(9))
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_every_ten_seconds(clock, capsys):
    with progress.shown():
        assert list(progress.track(range(8), description="adding")) == list(range(8))
        assert list(progress.track(iter(range(5)), description="more")) == list(range(5))
    out, err = capsys.readouterr()
    # A reading at the start, and one before each item: the third item comes after 12 seconds.
    assert out == "" and err.splitlines() == [
        "adding: 2/8, 0:00:24 left",
        "adding: 5/8, 0:00:12 left",
        "more: 2 so far",
    ]
    assert list(progress.track(range(8))) == list(range(8))
    assert capsys.readouterr().err == "", "off again after the block"


def test_a_slow_first_item_is_no_measure_of_the_others(monkeypatch, capsys):
    readings = iter([0, 1, 31, 32, 33, 42])
    monkeypatch.setattr(progress.time, "monotonic", readings.__next__)
    with progress.shown():
        list(progress.track(range(5), description="adding"))
    assert capsys.readouterr().err.splitlines() == ["adding: 1/5", "adding: 4/5, 0:00:04 left"]


def test_what_takes_no_time_says_nothing(capsys):
    with progress.shown():
        assert sum(progress.track([1, 2, 3], description="adding")) == 6
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_that_goes_away(monkeypatch, capsys):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(rich, "_console", screen)
    with progress.shown():
        for _ in progress.track(iter(range(3)), 3, "outer"):
            assert list(progress.track(range(2), description="inner")) == [0, 1]
    written = screen.file.getvalue()
    assert "outer" in written and "3/3" in written
    assert written.rstrip("\n").endswith("\x1b[2K"), "the last thing is that the line is erased"
