"""Settings: dataclass fields that know what they accept, and how plain values become them.

A part of a detector, of the data or of a training declares its settings as a dataclass beside the
part; `sepc_tf.config` puts them together. Here is what all of them share.
"""

import copy
import dataclasses
import difflib
import math
import os
import sys
import typing
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sepc_tf.errors import ConfigError

T = TypeVar("T")


def setting(
    default: Any,
    *,
    choices: tuple | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that is checked by `check_settings`.

    Args:
        default: its default; lists, dicts and dataclass instances are copied for each instance.
        choices: the values it may have.
        at_least, above, at_most, below: limits of the number, or of every number of a list. NaN and
            infinity are never accepted, and None always where it is the default.

    Example:
        >>> @dataclasses.dataclass
        ... class Options:
        ...     gamma: float = setting(2.0, at_least=0)
        >>> check_settings(Options(gamma=-1.0), "detector.options.", "my.yaml")
        Traceback (most recent call last):
        ...
        sepc_tf.errors.ConfigError: my.yaml: detector.options.gamma: -1.0: expected a number >= 0
    """
    limits = {">=": at_least, ">": above, "<=": at_most, "<": below}
    metadata = {
        "choices": choices,
        "limits": {sign: limit for sign, limit in limits.items() if limit is not None},
    }
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_HOLDS = {
    ">=": lambda value, limit: value >= limit,
    ">": lambda value, limit: value > limit,
    "<=": lambda value, limit: value <= limit,
    "<": lambda value, limit: value < limit,
}


def check_settings(settings: Any, prefix: str, source: Any) -> None:
    """Checks every value of a dataclass, and of the dataclasses in it, against its `setting`.

    Args:
        settings: a dataclass instance.
        prefix: dotted key of `settings` itself, with the final dot, as "train.".
        source: the file or the like that the values come from, for messages.

    Raises:
        ConfigError: naming source, key, value, and what is expected.
    """
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            check_settings(value, f"{key}.", source)
            continue
        choices, limits = field.metadata.get("choices"), field.metadata.get("limits", {})
        if choices is not None and value not in choices:
            allowed = ", ".join("null" if c is None else str(c) for c in choices)
            raise ConfigError(f"{source}: {key}: {value!r} is none of: {allowed}")
        if value is None:
            continue
        numbers = [n for n in (value if isinstance(value, list) else [value]) if _is_number(n)]
        wrong = [n for n in numbers if not all(_HOLDS[s](n, x) for s, x in limits.items())]
        if wrong or not all(map(_is_finite, numbers)):
            expected = " and ".join(f"{sign} {limit:g}" for sign, limit in limits.items())
            numbers = "numbers" if isinstance(value, list) else "a number"
            raise ConfigError(f"{source}: {key}: {value!r}: expected {numbers} {expected}".rstrip())


def check_unused(settings: Any, names: tuple[str, ...], prefix: str, reason: str) -> None:
    """Refuses settings that are set, though they do not apply to what is built.

    Args:
        settings: a dataclass instance.
        names: its fields that do not apply; each must have its default.
        prefix: dotted key of `settings`, with the final dot.
        reason: what is built, as "a KerasCV backbone".

    Raises:
        ConfigError: naming the key, its value and the default.
    """
    defaults = type(settings)()
    for name in names:
        value, default = getattr(settings, name), getattr(defaults, name)
        if value != default:
            raise ConfigError(
                f"{prefix}{name}: {value!r} has no effect on {reason}; leave it out (or at its "
                f"default, {'null' if default is None else repr(default)})"
            )


def check_exists(key: str, path: str | Path) -> None:
    """Refuses the path of a file or folder that is not there.

    Args:
        key: dotted key of the setting.
        path: its value; a relative one is looked up from the working directory.

    Raises:
        ConfigError: naming key, path and the folder it was looked up from.
    """
    if not os.path.exists(path):
        raise ConfigError(f"{key}: {path} does not exist{looked_up_from(path)}")


def looked_up_from(path: str | Path) -> str:
    """What to say after a relative path: the folder it is looked up from; "" of an absolute one."""
    return "" if os.path.isabs(path) else f" (looked up from {os.getcwd()})"


def typed(cls: type[T], values: dict, prefix: str, source: Any) -> T:
    """A dataclass of plain values, every key, type and limit checked.

    Args:
        cls: the dataclass.
        values: nested dicts, lists, numbers and strings.
        prefix: dotted key of `values`, with the final dot.
        source: the file or the like that they come from.

    Raises:
        ConfigError: naming source and key.
    """
    settings = resolved(merge(OmegaConf.structured(cls), values, cls, prefix, source), source)
    check_settings(settings, prefix, source)
    return settings


def merge(config: Any, values: dict, cls: type, prefix: str, source: Any) -> Any:
    """Merges plain values into an OmegaConf config made from a dataclass; see `typed`."""
    check_keys(values, cls, prefix, source)
    try:
        return OmegaConf.merge(config, values)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        reason = str(error).splitlines()[0]
        expected = _type_of(cls, key)
        raise ConfigError(f"{source}: {prefix}{key}: {reason} (expected {expected})") from error


def resolved(config: Any, source: Any) -> Any:
    """The dataclass of an OmegaConf config, with every `${...}` in it replaced.

    Raises:
        ConfigError: a `${...}` names nothing; the message has the key.
    """
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{source}: {error.full_key}: {str(error).splitlines()[0]} (in a value, ${{a.b}} "
            "stands for the value of a.b in the same config)"
        ) from error


def check_keys(values: Any, cls: type, prefix: str, source: Any) -> None:
    """Raises ConfigError for a key that is no field of a dataclass, a section that is none, or a
    number that is too large for any field."""
    fields = _types(cls)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source}: {prefix.rstrip('.') or 'config'}: expected a section with keys "
            f"{', '.join(fields) or '(none)'}, got {values!r}"
        )
    for key, value in values.items():
        if key not in fields:
            similar = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {prefix}{similar[0]}? " if similar else ""
            raise ConfigError(
                f"{source}: unknown key {prefix}{key}; {hint}"
                f"allowed here: {', '.join(prefix + name for name in fields) or 'nothing'}"
            )
        if any(map(_is_no_float, value if isinstance(value, list) else [value])):
            raise ConfigError(f"{source}: {prefix}{key}: the number is too large")
        if dataclasses.is_dataclass(fields[key]):
            check_keys(value, fields[key], f"{prefix}{key}.", source)


def _types(cls):
    """Field name -> type, also where annotations are strings."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_no_float(value):
    """Whether a value is a whole number that no float can hold, as 10^400."""
    return isinstance(value, int) and abs(value) > sys.float_info.max


def _is_finite(number):
    return isinstance(number, int) or math.isfinite(number)  # an int may be too large for a float


def _type_of(cls, key):
    current = cls
    for part in key.split("[")[0].split("."):
        fields = _types(current)
        if part not in fields:
            break
        current = fields[part]
        if not dataclasses.is_dataclass(current):
            break
    return getattr(current, "__name__", None) if type(current) is type else str(current)
