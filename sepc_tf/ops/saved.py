"""How Keras saves what is not a layer."""

from __future__ import annotations

import dataclasses
from typing import Any


class SavedByFields:
    """Base of a dataclass of plain values that Keras saves and loads by its fields.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Square(SavedByFields):
        ...     side: float
        >>> Square.from_config(Square(2.0).get_config())
        Square(side=2.0)
    """

    def get_config(self) -> dict[str, Any]:
        """The fields, as a dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SavedByFields:
        """The inverse of `get_config`."""
        return cls(**config)
