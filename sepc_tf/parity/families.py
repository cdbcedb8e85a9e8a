"""The families of cases, and the check of one case by the family it belongs to."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from sepc_tf.parity import (
    dense,
    fcos,
    fusion,
    masks,
    necks,
    networks,
    operators,
    reppoints,
    two_stage,
    two_stage_detectors,
)
from sepc_tf.parity.comparing import Comparison

# One file each. Its `check_of(config)` gives (check, tolerance) for the cases that are its own and
# None for others; a check is a function of a case and the `Comparison` that takes what it finds.
FAMILIES = (
    operators,
    necks,
    fusion,
    networks,
    dense,
    fcos,
    reppoints,
    two_stage,
    masks,
    two_stage_detectors,
)


def check_of(config: dict) -> tuple[Callable, float]:
    """Which function checks a case of this config, and to which tolerance.

    Args:
        config: `config` of a case in a golden manifest.

    Returns:
        the check, a function of (case, comparison), and the largest relative error allowed.

    Raises:
        ValueError: the config fits no family, or more than one.
    """
    found = {family.__name__: family.check_of(config) for family in FAMILIES}
    found = {name: check for name, check in found.items() if check is not None}
    if len(found) != 1:
        raise ValueError(
            f"the config of a case must fit one of {[f.__name__ for f in FAMILIES]}, fits "
            f"{[*found]}: {config}"
        )
    (check,) = found.values()
    return check


def check_case(case) -> Comparison:
    """Computes a case and compares every output.

    Args:
        case: one of `load_cases`.

    Returns:
        `Comparison`; an error on the way (a missing file, another shape) is one of its problems.

    Example, with the authors' outputs in `golden`:
        >>> print(check_case(load_cases("golden", "retina_loss")[0]))  # doctest: +SKIP
        pass  retina_loss                  worst relative error 5.6e-07 (allowed 1e-05)  ...
    """
    comparison = Comparison(case, tolerance=0.0)
    try:
        check, comparison.tolerance = check_of(case.config)
        check(case, comparison)
    except Exception as error:  # one broken case must not hide the others
        where = traceback.extract_tb(error.__traceback__)[-1]
        comparison.problems.append(
            f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        )
    return comparison.finish()
