"""Numbers against stored numbers: whole arrays, parts of them with statistics, integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

OPERATOR_TOLERANCE = 1e-5
NETWORK_TOLERANCE = 1e-4
FLOAT64_TOLERANCE = 1e-10
# For what is 0 in exact arithmetic, in float64; what is stored of it is rounding.
ZERO_TOLERANCE = 1e-9


class Stored(Protocol):
    """What a computation is compared with: a case of `load_cases`, or its float64 reference.

    Attributes:
        name: of the case.
        data: dict of key -> stored array, whole or a part.
        output_specs: dict of key -> dict with `shape`, `slices`, `mean`, `std`, `abssum` of the
            whole array, and `exact_zero` where it is 0 in exact arithmetic.
    """

    name: str
    data: Mapping[str, np.ndarray]
    output_specs: Mapping[str, dict]


@dataclass
class Comparison:
    """What became of one case.

    Attributes:
        case: what is compared with.
        tolerance: largest relative error allowed.
        error: the worst relative error of the outputs held to `tolerance`.
        worst: the output it belongs to.
        notes: what else is worth a line.
        problems: one line for everything wrong; empty if the case passed.
        compared: the keys of the outputs that were compared.
        coarse: the keys of those among them that could only be held to a coarse bound.
    """

    case: Stored
    tolerance: float
    error: float = 0.0
    worst: str = ""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    compared: set[str] = field(default_factory=set)
    coarse: set[str] = field(default_factory=set)

    @property
    def passed(self) -> bool:
        """Whether every output of the case was compared and found right."""
        return not self.problems

    @property
    def summary(self) -> str:
        """The worst error, the allowed one, and the output it belongs to."""
        return f"worst relative error {self.error:.1e} (allowed {self.tolerance:.0e})  {self.worst}"

    def __str__(self) -> str:
        line = f"{'pass' if self.passed else 'FAIL'}  {self.case.name:28} {self.summary}"
        problems = self.problems[:10]
        if len(self.problems) > len(problems):
            problems.append(f"... {len(self.problems) - len(problems)} more")
        return "\n      ".join([line, *self.notes, *problems])

    def record(self, key: str, error: float) -> None:
        """Holds one relative error against the tolerance; NaN counts as wrong."""
        self.compared.add(key)
        if not error <= self.error:
            self.error, self.worst = float(error), key
        if not error <= self.tolerance:
            self.problems.append(f"{key}: relative error {error:.1e}")

    def close(self, key: str, got, want=None, scale: float = 0.0) -> None:
        """Compares with a whole stored array, in units of its largest value (or of `scale`)."""
        self.record(key, relative_error(got, self.case.data[key] if want is None else want, scale))

    def equal(self, key: str, got, want=None) -> None:
        """Compares integers or flags, which must all be equal."""
        self.compared.add(key)
        got, want = np.asarray(got), np.asarray(self.case.data[key] if want is None else want)
        if got.shape != want.shape:
            self.problems.append(f"{key}: shape {got.shape}, expected {want.shape}")
        elif (got != want).any():
            self.problems.append(f"{key}: {(got != want).sum()} of {got.size} differ")

    def output(self, key: str, got, scale: float = 0.0) -> None:
        """Compares a whole array with what is stored of it: a part, and statistics of all of it.

        In units of the largest stored value, or of `scale` if that is larger.
        """
        if not self.case.output_specs[key].get("exact_zero"):
            self.record(key, self.output_error(key, got, scale))
            return
        self.compared.add(key)
        error = self.output_error(key, got, scale=1.0)
        if not error <= ZERO_TOLERANCE:
            self.problems.append(
                f"{key}: absolute error {error:.1e}, allowed {ZERO_TOLERANCE:.0e} (it is 0 exactly)"
            )

    def output_error(self, key: str, got, scale: float = 0.0) -> float:
        """The worst relative error of the stored part and of the statistics of the whole."""
        got, spec = np.asarray(got, np.float64), self.case.output_specs[key]
        if got.shape != tuple(spec["shape"]):
            self.problems.append(f"{key}: shape {got.shape}, expected {tuple(spec['shape'])}")
            return np.inf
        typical = max(np.hypot(spec["mean"], spec["std"]), scale, 1e-30)
        errors = [
            abs(got.mean() - spec["mean"]) / typical,
            abs(got.std() - spec["std"]) / typical,
            abs(np.abs(got).sum() - spec["abssum"]) / (typical * max(got.size, 1)),
        ]
        if key in self.case.data:
            slices = spec["slices"]
            part = got if slices is None else got[tuple(slice(*s) for s in slices)]
            errors.append(relative_error(part, self.case.data[key], scale))
        return np.max(errors)  # NaN if one is

    def include(self, other: Comparison, name: str) -> None:
        """Adds a comparison of the same outputs with other stored numbers, called `name`."""
        self.notes += [f"{name}: {other.summary}", *other.notes]
        self.problems += [f"{name}: {problem}" for problem in other.problems]
        self.compared |= other.compared

    def finish(self) -> Comparison:
        """Notes every output of the case that nothing was compared with."""
        missing = [key for key in self.case.output_specs if key not in self.compared]
        self.problems += [f"{key}: not compared" for key in missing]
        return self


def relative_error(got, want, scale: float = 0.0) -> float:
    """Largest difference over the largest absolute value of `want` (or over `scale`, if larger).

    Args:
        got, want: arrays of one shape.
        scale: a smallest unit, for arrays that may be next to nothing.

    Returns:
        the error; NaN if there is one in either array, 0 for empty arrays.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> relative_error([1.0, 4.0], [1.0, 5.0])
        0.2
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise ValueError(f"shape {got.shape}, expected {want.shape}")
    if not want.size:
        return 0.0
    return float(np.abs(got - want).max() / max(np.abs(want).max(), scale, 1e-30))
