"""How Keras saves a dataclass that holds layers and the like."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras


class SavedByParts:
    """Base of a dataclass whose fields are Keras objects, plain values, or lists of these.

    Example:
        >>> @keras.saving.register_keras_serializable()
        ... @dataclasses.dataclass(frozen=True)
        ... class Pair(SavedByParts):
        ...     layers: list
        >>> pair = Pair([keras.layers.Dense(3), keras.layers.Dense(4)])
        >>> [layer.units for layer in Pair.from_config(pair.get_config()).layers]
        [3, 4]
    """

    def get_config(self) -> dict[str, Any]:
        """The fields, as a dict of plain values."""
        serialize = keras.saving.serialize_keras_object
        return {f.name: serialize(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SavedByParts:
        """The inverse of `get_config`."""
        deserialize = keras.saving.deserialize_keras_object
        return cls(
            **{k: deserialize(v) if isinstance(v, dict | list) else v for k, v in config.items()}
        )
