"""Settings: limits, choices, types, and what has no effect."""

from __future__ import annotations

import dataclasses

import pytest

from sepc_tf.errors import ConfigError
from sepc_tf.settings import check_settings, check_unused, setting, typed

pytestmark = pytest.mark.same_on_both_stacks


@dataclasses.dataclass
class Inner:
    rate: float = setting(0.5, above=0, below=1)
    names: list[str] = setting([])


@dataclasses.dataclass
class Outer:
    count: int | None = setting(None, at_least=1)
    kind: str = setting("a", choices=("a", "b"))
    sides: list[int] = setting([1, 2], at_least=1, at_most=9)
    inner: Inner = setting(Inner())


def test_values_become_a_dataclass():
    got = typed(Outer, {"count": 3, "inner": {"rate": 0.25, "names": ["x"]}}, "part.", "f.yaml")
    assert got == Outer(count=3, inner=Inner(0.25, ["x"]))
    assert typed(Outer, {}, "part.", "f.yaml") == Outer()
    assert Outer().inner is not Outer().inner


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "part.count: 0: expected a number >= 1"),
        ({"count": "many"}, "part.count: .*'many'"),
        ({"cuont": 1}, "unknown key part.cuont; did you mean part.count"),
        ({"kind": "c"}, "part.kind: 'c' is none of: a, b"),
        ({"sides": [1, 10]}, r"part.sides: \[1, 10\]: expected numbers >= 1 and <= 9"),
        ({"inner": {"rate": 1.0}}, "part.inner.rate: 1.0: expected a number > 0 and < 1"),
        ({"inner": {"rate": float("nan")}}, "part.inner.rate: nan"),
        ({"inner": {"rates": 1.0}}, "did you mean part.inner.rate"),
        ({"inner": 3}, "part.inner: expected a section with keys rate, names, got 3"),
        (["count"], "part: expected a section with keys count"),
    ],
)
def test_a_wrong_value_names_file_key_and_what_is_expected(values, message):
    with pytest.raises(ConfigError, match=f"f.yaml: .*{message}"):
        typed(Outer, values, "part.", "f.yaml")


def test_none_is_accepted_only_as_the_default():
    check_settings(Outer(count=None), "", "f.yaml")
    with pytest.raises(ConfigError, match="kind: None is none of"):
        check_settings(Outer(kind=None), "", "f.yaml")


def test_what_has_no_effect_is_refused_unless_it_is_the_default():
    check_unused(Outer(), ("count", "sides"), "part.", "a brick")
    with pytest.raises(ConfigError, match=r"part.sides: \[3\] has no effect on a brick.*\[1, 2\]"):
        check_unused(Outer(sides=[3]), ("count", "sides"), "part.", "a brick")
