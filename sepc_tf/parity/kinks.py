"""Gradients through ReLUs whose inputs float32 cannot tell from 0.

Of the millions of units of a detector some always have an input within float32's rounding of 0. Two
right float32 programs may open the ReLU of such a unit or not; the outputs agree, but all gradients
below it get or miss what this one unit contributes. In float64 no unit is in doubt. So gradients
that are stored in float32 are compared with ours in float64, and a difference is accepted only if
it is what some of the units in doubt contribute, each wholly or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from unittest import mock

import numpy as np
import tensorflow as tf

from sepc_tf.parity.comparing import Comparison

ROUNDS = 4
UNITS_A_ROUND = 6
# The largest change of a parameter in the difference quotients, in float64.
STEP = 1e-7


@contextlib.contextmanager
def recorded_relus() -> Iterator[list]:
    """A list that every ReLU called inside the block appends its input and its output to.

    Those on matrices are left out: resizing makes its weights with them.
    """
    recorded, relu = [], tf.nn.relu

    def recording(x, name=None):
        y = relu(x, name=name)
        if y.shape.rank > 2:
            recorded.append((x, y))
        return y

    # Keras 2 has a `tf` of its own.
    with (
        mock.patch.object(tf.nn, "relu", recording),
        mock.patch.object(tf.compat.v2.nn, "relu", recording),
    ):
        yield recorded


@dataclasses.dataclass(frozen=True)
class Units:
    """Units in doubt.

    Attributes:
        relus: `[n]` int, the ReLU of each in the order of the calls.
        places: `[n]` int, where it is in the flat input.
        changes: `[n]` float64, by how much the gradient by its input would change.
    """

    relus: np.ndarray
    places: np.ndarray
    changes: np.ndarray

    def of(self, inputs: Sequence) -> np.ndarray:
        """The value of each unit in the inputs of all ReLUs."""
        flat = [np.ravel(x) for x in inputs]
        return np.array([flat[relu][place] for relu, place in zip(self.relus, self.places)])


def units_in_doubt(inputs: Sequence, rounded: Sequence, gradients: Sequence) -> Units:
    """The units whose input is as near to 0 as float32 rounds in the same ReLU's inputs.

    Args:
        inputs: of every ReLU, in float64.
        rounded: the same as float32 computes them.
        gradients: of the loss by every ReLU's output; None where there is none.

    Returns:
        `Units`: `|input| <= max |input - rounded|` over the inputs of its ReLU, and a gradient
        that is not 0.

    Example:
        >>> units = units_in_doubt(
        ...     [np.array([1e-9, 0.5, -1e-9])], [np.array([2e-8, 0.5, -2e-8])], [np.ones(3)])
        >>> units.places, units.changes
        (array([0, 2]), array([-1.,  1.]))
    """
    relus, places, changes = [], [], []
    for relu, (x, other, gradient) in enumerate(zip(inputs, rounded, gradients, strict=True)):
        if gradient is None:
            continue
        x, gradient = np.ravel(x), np.ravel(gradient)
        doubtful = np.abs(x) <= np.abs(x - np.ravel(other)).max()
        (found,) = np.nonzero(doubtful & (gradient != 0))
        relus += [relu] * len(found)
        places += [*found]
        changes += [*np.where(x[found] > 0, -gradient[found], gradient[found])]
    return Units(np.array(relus, int), np.array(places, int), np.array(changes, float))


class DoubtfulGradients:
    """Gradients in float64, and what the units in doubt may add to them.

    Args:
        variables: dict of golden key -> float64 variable.
        axes: dict of golden key -> the permutation from the variable's layout to the stored one.
        loss_of: function that computes the loss from the variables, eagerly.
        rounded: inputs of every ReLU in the order of the calls, as float32 computes them.

    Attributes:
        gradients: dict of golden key -> array in the stored layout.
        units: `Units`.
    """

    def __init__(
        self,
        variables: Mapping[str, tf.Variable],
        axes: Mapping[str, tuple],
        loss_of: Callable[[], tf.Tensor],
        rounded: Sequence,
    ) -> None:
        self.variables = variables
        self.axes = axes
        self.loss_of = loss_of
        with tf.GradientTape(persistent=True) as self.tape, recorded_relus() as relus:
            loss = loss_of()
        self.inputs = [x for x, _ in relus]
        by_variables, by_outputs = self.tape.gradient(
            loss, ([*variables.values()], [y for _, y in relus])
        )
        self.gradients = self._stored(by_variables)
        self.units = units_in_doubt(self.inputs, rounded, by_outputs)

    def _stored(self, gradients):
        return {
            key: np.transpose(
                np.zeros(v.shape) if g is None else tf.convert_to_tensor(g), self.axes[key]
            )
            for (key, v), g in zip(self.variables.items(), gradients)
        }

    def contribution(self, units: Sequence[int]) -> dict[str, np.ndarray]:
        """What some of the units in doubt add to every gradient if their ReLUs change."""
        changes = {relu: np.zeros(self.inputs[relu].shape) for relu in self.units.relus[units]}
        for unit in units:
            change = changes[self.units.relus[unit]]
            change.flat[self.units.places[unit]] = self.units.changes[unit]
        by_variables = self.tape.gradient(
            [self.inputs[relu] for relu in changes],
            [*self.variables.values()],
            output_gradients=[tf.constant(change) for change in changes.values()],
        )
        return self._stored(by_variables)

    def products(self, direction: Mapping[str, np.ndarray]) -> np.ndarray:
        """The scalar product of every unit's contribution with a direction, `[n]`.

        It is the unit's change times the derivative of its input along the direction, of which a
        difference quotient takes two forward passes for all units.

        Args:
            direction: dict of golden key -> array in the stored layout.
        """
        largest = max(np.abs(d).max() for d in direction.values())
        values = []
        for sign in (1, -1):
            before = {key: self.variables[key].numpy() for key in direction}
            for key, d in direction.items():
                moved = sign * STEP / largest * np.transpose(d, np.argsort(self.axes[key]))
                self.variables[key].assign(before[key] + moved)
            with recorded_relus() as relus:
                self.loss_of()
            values.append(self.units.of([x for x, _ in relus]))
            for key, value in before.items():
                self.variables[key].assign(value)
        return self.units.changes * (values[0] - values[1]) * largest / (2 * STEP)


def compare_doubtful_gradients(
    comparison: Comparison,
    gradients: Mapping[str, np.ndarray],
    in_float64: Callable[[], DoubtfulGradients],
    zeros: Sequence[str] = (),
) -> None:
    """Compares gradients with stored float32 ones; see the head of this file.

    Where some of them miss the tolerance, all are compared in float64, with the contributions of
    those units in doubt whose sum is nearest to what is missing: of a few units at a time, the most
    promising first, a least-squares fit says how much of each there is, and more than half is all.

    Args:
        comparison: of the case.
        gradients: dict of key -> our float32 gradient.
        in_float64: function that computes the same in float64; called if a gradient misses.
        zeros: keys of gradients that are 0 in exact arithmetic: what is stored of them is rounding,
            compared in units of the gradients of the other biases.
    """
    case = comparison.case
    biases = [np.abs(g).max() for key, g in gradients.items() if g.ndim == 1 and key not in zeros]
    scales = {key: max(biases) if key in zeros else 0.0 for key in gradients}

    def all_close(arrays):
        errors = {key: comparison.output_error(key, arrays[key], scales[key]) for key in arrays}
        return errors, all(error <= comparison.tolerance for error in errors.values())

    errors, close = all_close(gradients)
    if not close:
        exact = in_float64()
        what = _Stored(case, exact.gradients, scales)
        wanted = what.missing()
        tried, columns, flipped = [], np.zeros([len(wanted), 0]), []
        errors, close = all_close(exact.gradients)
        for _ in range(ROUNDS):
            if close:
                break
            left = wanted - columns[:, [tried.index(unit) for unit in flipped]].sum(axis=1)
            products = exact.products(what.direction(left))
            products[tried] = 0.0
            best = np.argsort(-products)[:UNITS_A_ROUND]
            best = [unit for unit in best if products[unit] > 0]
            if not best:
                break
            tried += best
            new = [what.measures(exact.contribution([unit])) for unit in best]
            columns = np.column_stack([columns, *new])
            shares = np.linalg.lstsq(columns, wanted, rcond=None)[0]
            flipped = [unit for unit, share in zip(tried, shares) if share > 0.5]
            added = exact.contribution(flipped) if flipped else {}
            errors, close = all_close(
                {key: g + added.get(key, 0.0) for key, g in exact.gradients.items()}
            )
        comparison.notes.append(
            f"gradients in float64: of {len(exact.units.places)} ReLUs whose input float32 cannot "
            f"tell from 0, {len(flipped)} must have been on the other side"
        )
    for key, error in errors.items():
        comparison.record(key, error)


class _Stored:
    """What a case stores of gradients, as linear functions of small changes of them.

    The stored elements, and to first order mean, deviation and mean absolute value of the whole;
    each in the unit of its relative error.
    """

    def __init__(self, case, gradients, scales):
        self.case = case
        self.gradients = gradients
        self.scales = scales

    def _part(self, key, array):
        if key not in self.case.data:
            return np.zeros(0)
        slices = self.case.output_specs[key]["slices"]
        return array if slices is None else array[tuple(slice(*s) for s in slices)]

    def _unit(self, key):
        return max(np.abs(self.case.data.get(key, 0.0)).max(), self.scales[key], 1e-30)

    def _slopes(self, key):
        """The derivatives of the three statistics, each of the gradient's shape or a number."""
        g, spec = self.gradients[key], self.case.output_specs[key]
        unit = g.size * max(np.hypot(spec["mean"], spec["std"]), self.scales[key], 1e-30)
        return 1 / unit, (g - g.mean()) / max(g.std() * unit, 1e-300), np.sign(g) / unit

    def missing(self):
        values = []
        for key, g in self.gradients.items():
            spec = self.case.output_specs[key]
            unit = max(np.hypot(spec["mean"], spec["std"]), self.scales[key], 1e-30)
            part = self._part(key, g)
            values.append(np.ravel(self.case.data.get(key, part) - part) / self._unit(key))
            values.append(
                np.array(
                    [
                        spec["mean"] - g.mean(),
                        spec["std"] - g.std(),
                        spec["abssum"] / g.size - np.abs(g).mean(),
                    ]
                )
                / unit
            )
        return np.concatenate(values)

    def measures(self, changes):
        """The same of changes of all gradients."""
        values = []
        for key, change in changes.items():
            values.append(np.ravel(self._part(key, change)) / self._unit(key))
            values.append(np.array([np.sum(s * change) for s in self._slopes(key)]))
        return np.concatenate(values)

    def direction(self, missing):
        """Dict of arrays whose scalar product with changes is that of `missing` and measures."""
        whole, start = {}, 0
        for key, g in self.gradients.items():
            part = self._part(key, g)
            end = start + part.size
            of_statistics = missing[end : end + 3]
            whole[key] = sum(v * s for v, s in zip(of_statistics, self._slopes(key)))
            whole[key] = np.array(np.broadcast_to(whole[key], g.shape))
            if part.size:
                self._part(key, whole[key])[...] += missing[start:end].reshape(
                    part.shape
                ) / self._unit(key)
            start = end + 3
        return whole
