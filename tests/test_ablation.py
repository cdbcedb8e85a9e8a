"""Comparing configs: finished runs stay, failed ones are named, the table is what was measured."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sepc_tf.ablation import Row, measure, plan, table, train_all, write_report
from sepc_tf.config import ConfigError, load_config
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.flops import Cost
from sepc_tf.zoo import build_detector

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
    configs = [ROOT / "configs/demo_baseline.yaml", CONFIG]
    names = [(item.name, item.seed) for item in plan(configs, [3, 4], tmp_path)]
    assert names == [
        ("demo_baseline", 3), ("demo_pconv_ibn", 3), ("demo_baseline", 4), ("demo_pconv_ibn", 4)
    ]  # fmt: skip
    (tmp_path / CONFIG.name).write_text("{}")
    with pytest.raises(ConfigError, match="demo_pconv_ibn"):
        plan([CONFIG, tmp_path / CONFIG.name], [0], tmp_path)


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
    experiments = plan([CONFIG], [0, 1], tmp_path / "out")
    for _ in range(2):
        failed = train_all(experiments, 2, ["train.epochs=1"], command=[sys.executable, script])
        assert failed == [experiments[1]]
    assert "step 3/7" in experiments[1].log_file.read_text()


def test_a_comparison_reports_what_its_runs_reached(tmp_path):
    data = make_demo_dataset(tmp_path / "data", train_images=12, val_images=4)
    experiments = plan([CONFIG], [0], tmp_path / "out")
    assert train_all(experiments, overrides=small(data)) == []
    [row] = measure(experiments)
    history = json.loads((experiments[0].run_dir / "history.json").read_text())
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


def test_table_gives_mean_and_spread_over_seeds():
    metrics = {"AP50": 0.5, "AP75": 0.3, "APs": 0.1, "APm": 0.2, "APl": 0.3, "seconds": 90.0}
    histories = [[{"AP": ap, "step": 5, **metrics}] for ap in (0.40, 0.42)]
    row = Row("x", "fsaf", "sepc", histories, [], Cost(1_500_000_000, 2_250_000), 12.34)
    cells = [cell.strip() for cell in table([row]).splitlines()[2].strip("|").split("|")]
    assert cells == [
        "x", "2", "41.0 ± 1.4", "50.0", "30.0", "10.0", "20.0", "30.0", "1.500", "2.250 M",
        "12.3", "1.5",
    ]  # fmt: skip
