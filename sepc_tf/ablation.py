"""Comparing configs: many trainings, then one table and its plots."""

from __future__ import annotations

import itertools
import json
import logging
import re
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
import yaml
from omegaconf import MISSING
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tensorflow.core.util import event_pb2

from sepc_tf.config import ConfigError, load_config
from sepc_tf.config_files import CONFIG_DIR, find_config, parse_yaml
from sepc_tf.files import check_writable, write_text, writing
from sepc_tf.flops import Cost, count_detector
from sepc_tf.inference import detect_images
from sepc_tf.optional import import_package
from sepc_tf.runs import load_run
from sepc_tf.settings import setting, typed

log = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
TIMING_ROUNDS = 15
MARKERS = {
    "baseline": "o",
    "dcn": "X",
    "pconv": "s",
    "pconv_ibn": "D",
    "sepc_lite": "^",
    "sepc": "*",
}
EXPERIMENT_DIR = CONFIG_DIR / "experiments"


@dataclass(frozen=True)
class Case:
    """One row of a comparison: a config, what is changed in it, and how it is called.

    Attributes:
        config: path of the config file, or the name of a packaged one.
        label: what the table and the plots say.
        overrides: `key=value` strings.
    """

    config: Path
    label: str
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^\w.+-]+", "_", self.label)

    @property
    def settings(self) -> str:
        """What the label stands for; empty where it says all."""
        if not self.overrides and self.label == self.config.stem:
            return ""
        return " ".join([self.config.stem, *self.overrides])


@dataclass(frozen=True)
class Training:
    """One training of a comparison.

    Attributes:
        case: what is trained.
        seed: the value of `train.seed`.
        run_dir: where it trains; its log is beside it.
        overrides: `key=value` strings, those of the case and of the whole comparison.
    """

    case: Case
    seed: int
    run_dir: Path
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.case.label}, seed {self.seed}"

    @property
    def log_file(self) -> Path:
        return self.run_dir.with_suffix(".log")

    def history(self) -> list[dict]:
        """Metrics of its evaluated epochs so far."""
        file = self.run_dir / "history.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []

    def finished(self) -> bool:
        """Whether the last epoch has been evaluated."""
        epochs = load_config(self.case.config, self.overrides).train.epochs
        return any(entry["epoch"] >= epochs for entry in self.history())


# What is compared ---------------------------------------------------------------------------------


@dataclass
class _CaseValues:
    """An entry of an experiment file."""

    config: str = MISSING
    label: str | None = None
    overrides: list[str] = setting([])


def experiment_names() -> list[str]:
    """Names of the packaged experiments, sorted.

    Example:
        >>> "fig7" in experiment_names()
        True
    """
    return sorted(path.stem for path in EXPERIMENT_DIR.glob("*.yaml"))


def read_experiment(path: str | Path) -> list[Case]:
    """The cases of an experiment file.

    It is a YAML list of `{config: ..., label: ..., overrides: [key=value, ...]}`. A config is a
    path, seen from the file, or the name of a packaged one; the label is its name unless one is
    given.

    Args:
        path: of the file, or one of `experiment_names()`; a file of that path comes first.

    Returns:
        list of `Case`, in the order of the file.

    Raises:
        ConfigError: the file is missing or no such list.

    Example:
        >>> [case.label for case in read_experiment("fig7")]
        ['no norm', 'single', 'independent', 'integrated']
    """
    file = Path(path)
    if not file.is_file() and str(path) in experiment_names():
        file = EXPERIMENT_DIR / f"{path}.yaml"
    if not file.is_file():
        raise ConfigError(
            f"experiment file {path} does not exist; the packaged experiments are "
            f"{', '.join(experiment_names())}"
        )
    try:
        entries = parse_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{file}: expected a list of {{config: NAME, overrides: [key=value]}}")
    cases = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "config" not in entry:
            raise ConfigError(
                f"{file}: [{number}]: expected a section with a config, got {entry!r}"
            )
        values = typed(_CaseValues, entry, f"[{number}].", file)
        beside = file.parent / values.config
        config = beside if beside.is_file() else find_config(values.config)
        cases.append(Case(config, values.label or config.stem, tuple(values.overrides)))
    return cases


def cases_of_configs(configs: Sequence[str | Path]) -> list[Case]:
    """Configs as they are, each called by its name.

    Example:
        >>> [case.label for case in cases_of_configs(["demo_sepc", "mine/my_own.yaml"])]
        ['demo_sepc', 'my_own']
    """
    return [Case(Path(config), Path(config).stem) for config in configs]


def plan(
    cases: Sequence[Case],
    seeds: Sequence[int],
    out_dir: str | Path,
    overrides: Sequence[str] = (),
) -> list[Training]:
    """Every case with every seed, seed by seed: a stopped comparison has whole columns.

    Args:
        cases: what `read_experiment` or `cases_of_configs` returned; labels tell the rows apart.
        seeds: integers.
        out_dir: the runs go to `out_dir/<label>/seed_<seed>`.
        overrides: `key=value` strings for all trainings; they win over those of a case.

    Returns:
        list of `Training`.

    Raises:
        ConfigError: a config cannot be read, a setting is wrong, or two labels are the same.
    """
    folders = [case.folder for case in cases]
    for case in cases:
        if folders.count(case.folder) > 1:
            raise ConfigError(
                f"two configs are named {case.label}: the table could not tell them apart"
            )
        load_config(case.config, [*case.overrides, *overrides])
    return [
        Training(
            case,
            seed,
            Path(out_dir) / case.folder / f"seed_{seed}",
            (f"train.seed={seed}", *case.overrides, *overrides),
        )
        for seed, case in itertools.product(seeds, cases)
    ]


# Training -----------------------------------------------------------------------------------------


def train_all(
    trainings: Sequence[Training],
    jobs: int = 1,
    command: Sequence[str] = (sys.executable, "-m", "sepc_tf", "train"),
) -> list[Training]:
    """Trains what is not finished, each in a process of its own; finished ones are kept.

    Args:
        trainings: what `plan` returned.
        jobs: trainings at the same time.
        command: what takes the arguments of `sepc-tf train`.

    Returns:
        list of the trainings that failed; their logs say why.
    """
    waiting = [item for item in trainings if not item.finished()]
    log.info("%d of %d trainings are finished", len(trainings) - len(waiting), len(trainings))
    running, failed = {}, []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    console = Console()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as view:
        bar = view.add_task("all", total=len(waiting), text="")
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    item = waiting.pop(0)
                    task = view.add_task(item.name, total=None, text="")
                    running[item] = _start(item, command), task
                    console.print(f"training {item.name}", highlight=False)
                time.sleep(1)
                for item, (process, task) in list(running.items()):
                    done, total, text = _last_step(item.log_file)
                    view.update(task, completed=done, total=total, text=text)
                    if process.poll() is None:
                        continue
                    del running[item]
                    view.remove_task(task)
                    view.advance(bar)
                    if process.returncode:
                        failed.append(item)
                        console.print(f"FAILED ({process.returncode}): see {item.log_file}")
        finally:
            for process, _ in running.values():
                process.terminate()  # saves and exits; the next call goes on there
            for process, _ in running.values():
                process.wait()
    return failed


def _start(item, command):
    item.run_dir.parent.mkdir(parents=True, exist_ok=True)
    command = [*command, "--config", str(item.case.config), "--run-dir", str(item.run_dir)]
    command += item.overrides
    with writing(item.log_file), open(item.log_file, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def _last_step(log_file):
    """Steps done, steps in all, and what the newest progress line of a log says."""
    with open(log_file, "rb") as file:
        file.seek(max(0, log_file.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        if found := re.search(r"step (\d+)/(\d+)  (.*?images/s)", line):
            return int(found[1]), int(found[2]), found[3]
    return 0, None, ""


# Measuring ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one case reached.

    Attributes:
        case: the `Case`.
        detector, variant: types of detector and head.
        integrated: whether the head has integrated batch normalisation.
        histories: one per seed, as in `history.json`.
        losses: one `[(step, loss), ...]` per seed.
        cost: `sepc_tf.flops.Cost` at the test size.
        milliseconds: median time of one image, decoding and NMS included.
    """

    case: Case
    detector: str
    variant: str
    integrated: bool
    histories: list[list[dict]]
    losses: list[list[tuple[int, float]]]
    cost: Cost
    milliseconds: float

    def final(self, metric: str) -> list[float]:
        """The metric at the end of training, one value per seed."""
        return [history[-1][metric] for history in self.histories]


def measure(trainings: Sequence[Training]) -> list[Row]:
    """Reads the results of finished trainings and times their detectors.

    The times are medians over rounds in which every detector takes its turn, so that a change of
    the machine's speed meets all of them.

    Args:
        trainings: finished ones, of one or several cases.

    Returns:
        list of `Row`, in the order in which the cases come first.
    """
    groups = {}
    for item in trainings:
        groups.setdefault(item.case, []).append(item)
    runs = {case: load_run(items[0].run_dir, "last") for case, items in groups.items()}
    times = _time_in_turns([_single_image_function(run) for run in runs.values()])
    rows = []
    for (case, items), milliseconds in zip(groups.items(), times):
        run = runs[case]
        side = -(-run.config.data.test_short_side // 32) * 32
        costs = count_detector(run.detector, side, side)
        rows.append(
            Row(
                case,
                run.config.detector.type,
                run.config.detector.head.variant,
                getattr(run.detector.towers, "normalization", None) == "integrated",
                [item.history() for item in items],
                [_read_losses(item.run_dir / "tensorboard") for item in items],
                sum(costs.values(), Cost(0, 0)),
                milliseconds,
            )
        )
    return rows


def _single_image_function(run):
    side = run.config.data.test_short_side
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (1, side, side, 3)), tf.uint8)
    detect = tf.function(
        lambda: detect_images(run.detector, run.config.data, image), autograph=False
    )
    return lambda: detect()["boxes"].numpy()


def _time_in_turns(functions):
    for function in functions:
        function()
        function()
    times = [[] for _ in functions]
    for _ in range(TIMING_ROUNDS):
        for function, measured in zip(functions, times):
            start = time.perf_counter()
            function()
            measured.append(1000 * (time.perf_counter() - start))
    return [statistics.median(measured) for measured in times]


def _read_losses(directory):
    """`loss/total` from TensorBoard files; of a step written twice, the later one counts."""
    losses = {}
    for file in sorted(directory.glob("events.*")):
        for record in tf.data.TFRecordDataset(str(file)):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.tag == "loss/total":
                    losses[event.step] = float(tf.make_ndarray(value.tensor))
    return sorted(losses.items())


# Report -------------------------------------------------------------------------------------------


def write_report(rows: Sequence[Row], out_dir: str | Path, command: str) -> Path:
    """Writes `ablation.md`, `ablation_cost.png` and `ablation_curves.png`.

    Args:
        rows: what `measure` returned.
        out_dir: a directory, made when missing.
        command: what was run, to be quoted.

    Returns:
        path of the Markdown file.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    plt = import_package("matplotlib.pyplot", "matplotlib", "the report of an ablation")
    out_dir = Path(out_dir)
    check_writable(out_dir)
    for plot, name in ((_plot_cost, "ablation_cost.png"), (_plot_curves, "ablation_curves.png")):
        with writing(out_dir / name):
            plot(plt, rows, out_dir / name)
    page = out_dir / "ablation.md"
    write_text(
        page,
        f"```\n{command}\n```\n\n{table(rows)}\n\n![AP against time and against FLOPs]"
        "(ablation_cost.png)\n\n![Training curves](ablation_curves.png)\n",
    )
    return page


def table(rows: Sequence[Row]) -> str:
    """Markdown: metrics in percent after the last epoch, mean over seeds and its spread for AP.

    Where a label does not say it all, a second column has the config and what was changed in it.
    """
    described = any(row.case.settings for row in rows)
    head = [*(["", "config and overrides"] if described else ["config"]), "seeds", *METRICS]
    head += ["GFLOPs", "parameters", "ms per image", "training, min"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        settings = [f"`{row.case.settings or row.case.config.stem}`"] if described else []
        cells = [f"{100 * np.mean(row.final(metric)):.1f}" for metric in METRICS]
        ap = row.final("AP")
        if len(ap) > 1:
            cells[0] += f" ± {100 * np.std(ap, ddof=1):.1f}"
        cells = [row.case.label, *settings, str(len(ap)), *cells]
        cells += [
            f"{row.cost.multiply_adds / 1e9:.3f}",
            f"{row.cost.parameters / 1e6:.3f} M",
            f"{row.milliseconds:.1f}",
            f"{np.mean(row.final('seconds')) / 60:.1f}",
        ]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _plot_cost(plt, rows, path):
    """AP over time and FLOPs: small dots are seeds, markers their mean.

    Of several detectors each has a colour, a line through its heads, and each head a marker.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    colours = _colours(plt, rows, lambda row: row.variant)
    by_detector = len(set(colours)) < len(rows)
    for axis, cost in zip(axes, (lambda r: r.milliseconds, lambda r: r.cost.multiply_adds / 1e9)):
        for row, colour in zip(rows, colours):
            ap = row.final("AP")
            marker = MARKERS[row.variant if by_detector else "baseline"]
            axis.plot([cost(row)] * len(ap), ap, ".", color=colour, alpha=0.5, markersize=5)
            axis.plot(
                cost(row), np.mean(ap), marker, color=colour, markersize=8, markeredgecolor="white",
                label=_legend_text(row.case),
            )  # fmt: skip
        for colour in set(colours) if by_detector else ():
            of_it = [row for row, other in zip(rows, colours) if other == colour]
            means = [np.mean(row.final("AP")) for row in of_it]
            axis.plot([*map(cost, of_it)], means, color=colour, linewidth=1, alpha=0.6, zorder=1)
    axes[0].set(xlabel="time per image, ms", ylabel="AP")
    axes[1].set(xlabel="GFLOPs (multiply-adds)")
    _finish(plt, figure, axes, path)


def _plot_curves(plt, rows, path):
    """AP and loss over the steps; solid with integrated batch normalisation, dashed without."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for row, colour in zip(rows, _colours(plt, rows, lambda row: row.integrated)):
        style = {"color": colour, "linestyle": "-" if row.integrated else "--"}
        for number, (history, losses) in enumerate(zip(row.histories, row.losses)):
            label = _legend_text(row.case) if number == 0 else None
            axes[0].plot(
                *zip(*[(entry["step"], entry["AP"]) for entry in history]), label=label, **style
            )
            axes[1].plot(*_smoothed(losses), label=label, **style, linewidth=1)
    axes[0].set(xlabel="step", ylabel="AP")
    axes[1].set(xlabel="step", ylabel="loss (running mean)", yscale="log")
    _finish(plt, figure, axes, path)


def _finish(plt, figure, axes, path):
    axes[0].yaxis.set_major_formatter(lambda value, position: f"{100 * value:g}")
    for axis in axes:
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _legend_text(case):
    """The label, and below it what it stands for, in short lines."""
    if not case.settings:
        return case.label
    settings = [part.removeprefix("detector.") for part in case.settings.split(" ")]
    return "\n".join([case.label, *textwrap.wrap(" ".join(settings), 36)])


def _smoothed(losses, width=5):
    steps, values = np.array(losses).T
    width = min(width, len(values))
    return steps[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid")


def _colours(plt, rows, appearance):
    """A colour for each row; for each detector where `appearance` tells its rows apart."""
    names = [row.detector for row in rows]
    looks = {(row.detector, appearance(row)) for row in rows}
    if len(set(names)) == 1 or len(looks) < len(rows):
        names = [row.case.label for row in rows]
    order = list(dict.fromkeys(names))
    palette = plt.get_cmap("tab10" if len(order) <= 10 else "tab20")
    return [palette(order.index(name)) for name in names]
