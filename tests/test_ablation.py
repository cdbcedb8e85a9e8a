"""Comparing configs: finished runs stay, failed ones are named, the table is what was measured."""

import itertools
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sepc_tf import ablation
from sepc_tf.ablation import (
    Case,
    Row,
    cases_of_configs,
    experiment_names,
    measure,
    plan,
    read_experiment,
    table,
    train_all,
    write_report,
)
from sepc_tf.config import ConfigError, load_config
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.flops import Cost
from sepc_tf.zoo import build_detector, build_towers

pytestmark = pytest.mark.same_on_both_stacks

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/demo_pconv_ibn.yaml"


def small(data):
    return [
        f"data.directory={data}",
        "detector.backbone.width=8",
        "detector.head.filters=16",
        "detector.head.num_convs=1",
        "data.short_side=[64]",
        "data.test_short_side=64",
        "data.long_side=64",
        "train.epochs=2",
        "train.evaluate_every=1",
        "train.batch_size=4",
        "train.log_every=2",
        "train.cpu_replicas=1",
    ]


def test_plan_goes_seed_by_seed_and_refuses_equal_names(tmp_path):
    cases = cases_of_configs([ROOT / "configs/demo_baseline.yaml", CONFIG])
    trainings = plan(cases, [3, 4], tmp_path, ["train.epochs=2"])
    assert [item.run_dir.relative_to(tmp_path).as_posix() for item in trainings] == [
        "demo_baseline/seed_3", "demo_pconv_ibn/seed_3",
        "demo_baseline/seed_4", "demo_pconv_ibn/seed_4",
    ]  # fmt: skip
    assert trainings[3].overrides == ("train.seed=4", "train.epochs=2")
    (tmp_path / CONFIG.name).write_text("{}")
    with pytest.raises(ConfigError, match="demo_pconv_ibn"):
        plan(cases_of_configs([CONFIG, tmp_path / CONFIG.name]), [0], tmp_path)


@pytest.mark.parametrize("name", experiment_names())
def test_packaged_experiments_can_be_trained_and_differ_in_every_case(name, tmp_path):
    trainings = plan(read_experiment(name), [0], tmp_path)
    configs = [load_config(item.case.config, item.overrides) for item in trainings]
    assert len(configs) > 1
    assert not any(a == b for a, b in itertools.combinations(configs, 2))


def test_fig7_has_the_four_norms():
    configs = [load_config(case.config, case.overrides) for case in read_experiment("fig7")]
    towers = [build_towers(config.detector.head) for config in configs]
    assert [neck.normalization for neck in towers] == [None, "single", "independent", "integrated"]


def test_an_experiment_file_of_one_s_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("_base_: []\ntrain: {epochs: 7}\n")
    file = tmp_path / "list.yaml"
    file.write_text(
        "- {config: mine.yaml}\n"
        "- {config: demo_sepc, label: 'a/b, c', overrides: [train.epochs=5]}\n"
    )
    trainings = plan(read_experiment(file), [0], tmp_path / "out", ["train.batch_size=3"])
    assert [item.case.label for item in trainings] == ["mine", "a/b, c"]
    assert trainings[1].run_dir == tmp_path / "out/a_b_c/seed_0"
    values = [load_config(item.case.config, item.overrides).train for item in trainings]
    assert [(v.epochs, v.batch_size) for v in values] == [(7, 3), (5, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"list.yaml: expected a list of \{config: NAME"),
        ("- demo_sepc", r"list.yaml: \[0\]: expected a section with a config, got 'demo_sepc'"),
        ("- {config: demo_sepc, labels: x}", r"unknown key \[0\].labels; did you mean \[0\].label"),
        ("- {config: demo_spec}", "did you mean the packaged config demo_sepc"),
        ("- {config: demo_sepc, overrides: [train.epoch=1]}", "did you mean train.epochs"),
        ("- [", "list.yaml: not valid YAML"),
    ],
)
def test_a_wrong_experiment_file_is_one_clear_error(tmp_path, text, message):
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        plan(read_experiment(tmp_path / "list.yaml"), [0], tmp_path)


def test_a_missing_experiment_names_the_packaged_ones():
    with pytest.raises(ConfigError, match=r"fig8 does not exist; .* detectors, fig7, levels"):
        read_experiment("fig8")


def test_a_failed_training_is_returned_and_a_finished_one_is_not_repeated(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "run = Path(sys.argv[sys.argv.index('--run-dir') + 1])\n"
        "print('step 3/7  00:00:01 left  5.0 images/s', flush=True)\n"
        "if 'train.seed=1' in sys.argv: sys.exit(3)\n"
        "assert not run.exists(), 'trained twice'\n"
        "run.mkdir()\n"
        "(run / 'history.json').write_text(json.dumps([{'epoch': 1}]))\n"
    )
    trainings = plan(cases_of_configs([CONFIG]), [0, 1], tmp_path / "out", ["train.epochs=1"])
    for _ in range(2):
        failed = train_all(trainings, 2, command=[sys.executable, script])
        assert failed == [trainings[1]]
    assert "step 3/7" in trainings[1].log_file.read_text()


def test_a_comparison_reports_what_its_runs_reached(tmp_path):
    data = make_demo_dataset(tmp_path / "data", train_images=12, val_images=4)
    trainings = plan(cases_of_configs([CONFIG]), [0], tmp_path / "out", small(data))
    assert train_all(trainings) == []
    [row] = measure(trainings)
    history = json.loads((trainings[0].run_dir / "history.json").read_text())
    assert row.histories == [history] and [entry["epoch"] for entry in history] == [1, 2]
    assert 0 < history[0]["seconds"] < history[1]["seconds"]
    detector = build_detector(load_config(CONFIG, small(data)).detector, num_classes=10)
    assert row.cost.parameters == sum(
        int(np.prod(weight.shape)) for weight in detector.trainable_weights
    )
    assert [step for step, _ in row.losses[0]] == [2, 4, 6]
    assert all(np.isfinite(loss) and loss > 0 for _, loss in row.losses[0])
    assert row.milliseconds > 0
    page = write_report([row], tmp_path / "report", "sepc-tf ablate")
    assert table([row]) in page.read_text()
    for name in ("ablation_cost.png", "ablation_curves.png"):
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")


def result(case, detector="retinanet", variant="sepc_lite", cost=1.0, ap=(0.40, 0.42)):
    """A row of made-up results."""
    others = {"AP50": 0.5, "AP75": 0.3, "APs": 0.1, "APm": 0.2, "APl": 0.3, "seconds": 90.0}
    histories = [
        [{"AP": part * value, "step": step, **others} for step, part in ((50, 0.4), (100, 1))]
        for value in ap
    ]
    losses = [[(step, 3 / step) for step in range(1, 101)] for _ in ap]
    operations = Cost(round(1.5e9 * cost), 2_250_000)
    integrated = variant != "baseline"
    return Row(case, detector, variant, integrated, histories, losses, operations, 12.34 * cost)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_gives_mean_and_spread_over_seeds():
    [case] = cases_of_configs(["x.yaml"])
    lines = table([result(case)]).splitlines()
    assert cells(lines[2]) == [
        "x", "2", "41.0 ± 1.4", "50.0", "30.0", "10.0", "20.0", "30.0", "1.500", "2.250 M",
        "12.3", "1.5",
    ]  # fmt: skip
    assert cells(lines[0])[:2] == ["config", "seeds"] and len(cells(lines[0])) == 12


def test_table_and_legend_say_what_a_label_stands_for():
    rows = [
        result(Case(Path("x.yaml"), "three", ("detector.head.num_convs=3",))),
        result(Case(Path("x.yaml"), "x")),
    ]
    lines = table(rows).splitlines()
    assert cells(lines[0])[:3] == ["", "config and overrides", "seeds"]
    assert cells(lines[2])[:3] == ["three", "`x detector.head.num_convs=3`", "2"]
    assert cells(lines[3])[:3] == ["x", "`x`", "2"]
    assert ablation._legend_text(rows[0].case) == "three\nx head.num_convs=3"


def test_heads_of_one_detector_share_its_colour_where_markers_tell_them_apart():
    def colours(rows):
        return ablation._colours(plt, rows, lambda row: row.variant)

    cases = cases_of_configs("abcd")
    kinds = [(d, v) for d in ("fsaf", "fcos") for v in ("baseline", "sepc")]
    first, second, third, fourth = colours([result(c, *kind) for c, kind in zip(cases, kinds)])
    assert first == second != third == fourth
    assert len(set(colours([result(case, "fsaf", "sepc") for case in cases]))) == 4
    mixed = [result(cases[0], "fsaf"), result(cases[1], "fcos"), result(cases[2], "fcos")]
    assert len(set(colours(mixed))) == 3
