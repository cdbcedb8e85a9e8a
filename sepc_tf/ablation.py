"""Comparing configs: many trainings, then one table and its plots."""

from __future__ import annotations

import itertools
import json
import logging
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tensorflow.core.util import event_pb2

from sepc_tf.config import ConfigError, load_config
from sepc_tf.files import check_writable, write_text, writing
from sepc_tf.flops import Cost, count_detector
from sepc_tf.inference import detect_images
from sepc_tf.optional import import_package
from sepc_tf.runs import load_run
from sepc_tf.zoo import DETECTORS

log = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
WITHOUT_IBN = ("baseline", "dcn", "pconv")
TIMING_ROUNDS = 15


@dataclass(frozen=True)
class Experiment:
    """One training of a comparison.

    Attributes:
        config: path of the config file.
        seed: the value of `train.seed`.
        run_dir: where it trains; its log is beside it.
    """

    config: Path
    seed: int
    run_dir: Path

    @property
    def name(self) -> str:
        return self.config.stem

    @property
    def log_file(self) -> Path:
        return self.run_dir.with_suffix(".log")

    def settings(self, overrides: Sequence[str] = ()) -> list[str]:
        """The overrides of its training."""
        return [f"train.seed={self.seed}", *overrides]

    def history(self) -> list[dict]:
        """Metrics of its evaluated epochs so far."""
        file = self.run_dir / "history.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []

    def finished(self, overrides: Sequence[str] = ()) -> bool:
        """Whether the last epoch has been evaluated."""
        epochs = load_config(self.config, self.settings(overrides)).train.epochs
        return any(entry["epoch"] >= epochs for entry in self.history())


def plan(
    configs: Sequence[str | Path], seeds: Sequence[int], out_dir: str | Path
) -> list[Experiment]:
    """Every config with every seed, seed by seed: a stopped comparison has whole columns.

    Args:
        configs: paths of config files, or names of packaged ones; their names tell the rows apart.
        seeds: integers.
        out_dir: the runs go to `out_dir/<config's name>/seed_<seed>`.

    Returns:
        list of `Experiment`.

    Raises:
        ConfigError: a config cannot be read, or two have the same name.
    """
    names = [Path(config).stem for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two configs are named {twice[0]}: the table could not tell them apart")
    for config in configs:
        load_config(config)
    return [
        Experiment(Path(config), seed, Path(out_dir) / Path(config).stem / f"seed_{seed}")
        for seed, config in itertools.product(seeds, configs)
    ]


# Training -----------------------------------------------------------------------------------------


def train_all(
    experiments: Sequence[Experiment],
    jobs: int = 1,
    overrides: Sequence[str] = (),
    command: Sequence[str] = (sys.executable, "-m", "sepc_tf", "train"),
) -> list[Experiment]:
    """Trains what is not finished, each in a process of its own; finished ones are kept.

    Args:
        experiments: what `plan` returned.
        jobs: trainings at the same time.
        overrides: `key=value` strings for all of them.
        command: what takes the arguments of `sepc-tf train`.

    Returns:
        list of the experiments whose training failed; their logs say why.
    """
    waiting = [item for item in experiments if not item.finished(overrides)]
    log.info("%d of %d trainings are finished", len(experiments) - len(waiting), len(experiments))
    running, failed = {}, []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    console = Console()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as view:
        bar = view.add_task("all", total=len(waiting), text="")
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    item = waiting.pop(0)
                    label = f"{item.name} seed {item.seed}"
                    running[item] = (
                        _start(item, command, overrides),
                        view.add_task(label, total=None, text=""),
                    )
                    console.print(f"training {label}", highlight=False)
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


def _start(item, command, overrides):
    item.run_dir.parent.mkdir(parents=True, exist_ok=True)
    command = [*command, "--config", str(item.config), "--run-dir", str(item.run_dir)]
    command += item.settings(overrides)
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
    """What one config reached.

    Attributes:
        name: of the config.
        detector, variant: from the config.
        histories: one per seed, as in `history.json`.
        losses: one `[(step, loss), ...]` per seed.
        cost: `sepc_tf.flops.Cost` at the test size.
        milliseconds: median time of one image, decoding and NMS included.
    """

    name: str
    detector: str
    variant: str
    histories: list[list[dict]]
    losses: list[list[tuple[int, float]]]
    cost: Cost
    milliseconds: float

    def final(self, metric: str) -> list[float]:
        """The metric at the end of training, one value per seed."""
        return [history[-1][metric] for history in self.histories]


def measure(experiments: Sequence[Experiment]) -> list[Row]:
    """Reads the results of finished trainings and times their detectors.

    The times are medians over rounds in which every detector takes its turn, so that a change of
    the machine's speed meets all of them.

    Args:
        experiments: finished ones, of one or several configs.

    Returns:
        list of `Row`, in the order in which the configs come first.
    """
    groups = {}
    for item in experiments:
        groups.setdefault(item.name, []).append(item)
    runs = {name: load_run(items[0].run_dir, "last") for name, items in groups.items()}
    times = _time_in_turns([_single_image_function(run) for run in runs.values()])
    rows = []
    for (name, items), milliseconds in zip(groups.items(), times):
        run = runs[name]
        side = -(-run.config.data.test_short_side // 32) * 32
        costs = count_detector(run.detector, side, side)
        rows.append(
            Row(
                name,
                run.config.detector.type,
                run.config.detector.head.variant,
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
    """Markdown: metrics in percent after the last epoch, mean over seeds and its spread for AP."""
    lines = [
        "| config | seeds | " + " | ".join(METRICS) + " | GFLOPs | parameters | ms per image "
        "| training, min |",
        "|---" * (len(METRICS) + 6) + "|",
    ]
    for row in rows:
        cells = [f"{100 * np.mean(row.final(metric)):.1f}" for metric in METRICS]
        ap = row.final("AP")
        if len(ap) > 1:
            cells[0] += f" ± {100 * np.std(ap, ddof=1):.1f}"
        lines.append(
            f"| {row.name} | {len(ap)} | {' | '.join(cells)} | {row.cost.multiply_adds / 1e9:.3f} "
            f"| {row.cost.parameters / 1e6:.3f} M | {row.milliseconds:.1f} "
            f"| {np.mean(row.final('seconds')) / 60:.1f} |"
        )
    return "\n".join(lines)


def _plot_cost(plt, rows, path):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for row, colour in zip(rows, _colours(plt, rows)):
        ap = row.final("AP")
        costs = (row.milliseconds, row.cost.multiply_adds / 1e9)
        for axis, cost in zip(axes, costs):
            axis.plot([cost] * len(ap), ap, ".", color=colour, alpha=0.5)
            axis.plot(cost, np.mean(ap), _marker(row), color=colour, label=row.name)
    axes[0].set(xlabel="time per image, ms", ylabel="AP")
    axes[1].set(xlabel="GFLOPs (multiply-adds)")
    _finish(plt, figure, axes, path)


def _plot_curves(plt, rows, path):
    """AP and loss over the steps; solid with integrated batch normalisation, dashed without."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for row, colour in zip(rows, _colours(plt, rows)):
        style = {"color": colour, "linestyle": "--" if row.variant in WITHOUT_IBN else "-"}
        for number, (history, losses) in enumerate(zip(row.histories, row.losses)):
            label = row.name if number == 0 else None
            axes[0].plot(
                *zip(*[(entry["step"], entry["AP"]) for entry in history]), label=label, **style
            )
            axes[1].plot(*_smoothed(losses), label=label, **style, linewidth=1)
    axes[0].set(xlabel="step", ylabel="AP")
    axes[1].set(xlabel="step", ylabel="loss (running mean)", yscale="log")
    _finish(plt, figure, axes, path)


def _finish(plt, figure, axes, path):
    axes[0].yaxis.set_major_formatter(lambda value, position: f"{100 * value:.0f}")
    for axis in axes:
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _smoothed(losses, width=5):
    steps, values = np.array(losses).T
    width = min(width, len(values))
    return steps[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid")


def _colours(plt, rows):
    return [plt.get_cmap("tab10")(index % 10) for index in range(len(rows))]


def _marker(row):
    return "os^Dv*PX"[list(DETECTORS).index(row.detector) % 8]
