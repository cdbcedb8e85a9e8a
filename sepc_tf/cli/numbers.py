"""Numbers and sizes on the command line, within their limits."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable


def whole_number(at_least: int) -> Callable[[str], int]:
    """What `add_argument` takes as `type` of a whole number.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> action = parser.add_argument("--limit", type=whole_number(1))
        >>> parser.parse_args(["--limit", "3"]).limit
        3
    """

    def parse(text):
        if not text.isdecimal() or int(text) < at_least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {at_least} on, got {text!r}"
            )
        return int(text)

    return parse


def fraction(text: str) -> float:
    """A number within 0..1, as `type` of `add_argument`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number within 0..1, got {text!r}")
    return value


def height_width(text: str) -> tuple[int, int]:
    """Height and width in pixels, as `type` of `add_argument`.

    Example:
        >>> height_width("480x640")
        (480, 640)
    """
    found = re.fullmatch(r"0*([1-9]\d*)x0*([1-9]\d*)", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH as 480x640, got {text!r}")
    return int(found[1]), int(found[2])
