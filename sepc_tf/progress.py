"""How far something is and how long it still takes, shown where a command line asked for it.

Where standard output is a terminal, a bar is live there while the work lasts; otherwise a line goes
to standard error every ten seconds, so that a redirected result stays free of them. Called from
another program the functions of this package stay silent: `shown` turns it on.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0

_on = False


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Inside the `with` block, `track` shows progress.

    Example:
        >>> with shown():
        ...     sum(track(range(4), description="adding"))
        6
    """
    global _on
    before, _on = _on, True
    try:
        yield
    finally:
        _on = before


def track(iterable: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
    """Passes on the items of an iterable, and shows how many there have been.

    Args:
        iterable: anything that can be iterated over once.
        total: number of its items; by default its length where it has one, else unknown.
        description: what is done with them, as "evaluating".

    Yields:
        the items, unchanged.

    Example:
        >>> list(track(["a", "b"], description="reading"))
        ['a', 'b']
    """
    if not _on:
        yield from iterable
        return
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    console = rich.get_console()
    follow = _on_terminal if console.is_terminal else _in_log
    yield from follow(iterable, total, description)


def _on_terminal(iterable, total, description):
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=rich.get_console(), transient=True) as bar:
        yield from bar.track(iterable, total=total, description=description)


def _in_log(iterable, total, description):
    said = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if done == 1:
            since = now  # the first item may trace a graph: it says nothing of the others
        if done and now - said >= SECONDS_BETWEEN_LINES:
            said = now
            print(f"{description}: {_line(done, total, now - since)}", file=sys.stderr, flush=True)
        yield item


def _line(done, total, seconds):
    """`120/5000, 0:03:10 left`; all items but the first took `seconds`."""
    if not total:
        return f"{done} so far"
    if done == 1:
        return f"1/{total}"
    left = datetime.timedelta(seconds=round((total - done) * seconds / (done - 1)))
    return f"{done}/{total}, {left} left"
