"""Two runs on the same images: by how much they differ, and how sure that is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from sepc_tf.analysis.detections import run_detections
from sepc_tf.analysis.hot import hotcoco, hotcoco_evaluation
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.fingerprint import fingerprint
from sepc_tf.errors import DatasetError

CONFIDENCE = 0.95


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
        differences: one `Difference` for each of COCO's numbers that there is.
        per_class: dict from class name to (AP of the first, AP of the second).
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

    Raises:
        MissingPackageError: hotcoco is not installed.

    Example:
        >>> same = compare_results(dataset, [], [], samples=10).differences[0]
        >>> same.metric, same.difference, same.low, same.high
        ('AP', 0.0, 0.0, 0.0)
    """
    evaluations = [hotcoco_evaluation(dataset, results) for results in (first, second)]
    found = hotcoco().compare(
        *evaluations, n_bootstrap=samples, seed=seed, confidence=CONFIDENCE
    )
    differences = [
        Difference(
            name,
            found["metrics_a"][name],
            found["metrics_b"][name],
            found["ci"][name]["lower"],
            found["ci"][name]["upper"],
        )
        for name in found["metric_keys"]
        if found["metrics_a"][name] >= 0  # -1: there are no objects of this size
    ]
    names = dict(zip(dataset.category_ids, dataset.class_names))
    per_class = {
        names[item["cat_id"]]: (item["ap_a"], item["ap_b"])
        for item in sorted(found["per_category"], key=lambda item: item["cat_id"])
        if item["ap_a"] >= 0
    }
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
        MissingPackageError: hotcoco is not installed.

    Example:
        >>> compare_runs("runs/demo", "runs/demo", samples=10).images
        4
    """
    hotcoco()  # a missing package is an error before the work
    dataset, of_first = run_detections(first, checkpoint, overrides)
    other, of_second = run_detections(second, checkpoint, overrides)
    if fingerprint(dataset) != fingerprint(other):
        raise DatasetError(
            f"{first} and {second} have different validation sets ({dataset.name}, {other.name}); "
            "give overrides as data.val.annotations=FILE that hold for both"
        )
    return compare_results(dataset, of_first, of_second, samples, seed)
