"""Two runs on the same images: by how much they differ, and how sure that is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sepc_tf.analysis.bootstrap import METRICS, WeightedPrecision
from sepc_tf.analysis.detections import run_detections
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.fingerprint import fingerprint
from sepc_tf.errors import DatasetError
from sepc_tf.evaluation.coco import evaluate_detections
from sepc_tf.progress import track

PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Difference:
    """One metric of two runs, in 0..1.

    Attributes:
        metric: its name, as "AP50".
        first, second: of either run.
        low, high: ends of the 95 % interval of `second - first`.
    """

    metric: str
    first: float
    second: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """second - first."""
        return self.second - self.first

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Two runs compared.

    Attributes:
        differences: one `Difference` for each of AP, AP50, AP75, APs, APm, APl that there is.
        per_class: dict from class name to (AP of the first, AP of the second), of the classes that
            have objects.
        images, samples, seed: what the intervals were made with.
    """

    differences: list[Difference]
    per_class: dict[str, tuple[float, float]]
    images: int
    samples: int
    seed: int

    def to_dict(self) -> dict:
        """As a dict that can be written as JSON."""
        return asdict(self)

    def table(self, first: str, second: str):
        """The differences as a `rich.table.Table`."""
        from rich.table import Table

        table = Table(
            title=f"{self.images} images, {self.samples} bootstrap samples, seed {self.seed}"
        )
        table.add_column("%")
        for name in (first, second, "difference", "95 % interval"):
            table.add_column(name.replace("[", r"\["), justify="right")
        for item in self.differences:
            table.add_row(
                item.metric,
                f"{100 * item.first:.1f}",
                f"{100 * item.second:.1f}",
                f"{100 * item.difference:+.1f}",
                f"{100 * item.low:+.1f} .. {100 * item.high:+.1f}" + (" *" if item.clear else "  "),
            )
        return table


def compare_results(
    dataset: CocoDataset,
    first: list[dict],
    second: list[dict],
    samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compares two lists of detections of the same images.

    The intervals are a paired bootstrap: images are drawn with replacement, as many as there are,
    and both lists are evaluated on the drawn ones; the interval holds the middle 95 % of the
    differences. It tells how much of a difference is due to which images happen to be in the data
    set. It says nothing of how much another training, of another seed, would differ.

    Args:
        dataset: the `CocoDataset` with the truth.
        first, second: lists in COCO's result format.
        samples: how often images are drawn.
        seed: of the draws; the same seed gives the same intervals.

    Example:
        >>> same = compare_results(dataset, [], [], samples=10).differences[0]
        >>> same.metric, same.difference, same.low, same.high
        ('AP', 0.0, 0.0, 0.0)
    """
    pair = [WeightedPrecision(dataset, results) for results in (first, second)]
    before, after = (precision(np.ones(len(dataset))) for precision in pair)
    drawn = {name: [] for name in METRICS}
    rng = np.random.default_rng(seed)
    for _ in track(range(samples), samples, "comparing"):
        numbers = rng.integers(0, len(dataset), len(dataset))
        weights = np.bincount(numbers, minlength=len(dataset)).astype(float)
        values = [precision(weights) for precision in pair]
        for name in METRICS:
            if values[0][name] is not None:
                drawn[name].append(values[1][name] - values[0][name])
    differences = [
        Difference(
            name,
            before[name],
            after[name],
            *(float(end) for end in np.percentile(drawn[name], PERCENTILES)),
        )
        for name in METRICS
        if drawn[name]
    ]
    aps = [evaluate_detections(dataset, results).per_class for results in (first, second)]
    per_class = {name: (value, aps[1][name]) for name, value in aps[0].items() if value is not None}
    return Comparison(differences, per_class, len(dataset), samples, seed)


def compare_runs(
    first: str | Path,
    second: str | Path,
    checkpoint: str | Path = "best",
    overrides: tuple | list = (),
    samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compares two runs on the validation set that both have; see `compare_results`.

    Args:
        first, second: run directories.
        checkpoint: "best" or "last", of either.
        overrides: `"dotted.key=value"` strings for both.
        samples, seed: of the bootstrap.

    Raises:
        DatasetError: the runs have different validation sets.

    Example, which builds two detectors where they have not been evaluated yet:
        >>> comparison = compare_runs("runs/first", "runs/second")  # doctest: +SKIP
        >>> comparison.differences[0].difference  # doctest: +SKIP
        0.021
    """
    dataset, of_first = run_detections(first, checkpoint, overrides)
    other, of_second = run_detections(second, checkpoint, overrides)
    if fingerprint(dataset) != fingerprint(other):
        raise DatasetError(
            f"{first} and {second} have different validation sets ({dataset.name}, {other.name}); "
            "give overrides as data.val.annotations=FILE that hold for both"
        )
    return compare_results(dataset, of_first, of_second, samples, seed)
