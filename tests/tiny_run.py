"""A training that takes seconds: a tiny detector on the generated digits."""

from pathlib import Path

from sepc_tf.config import load_config

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/demo_baseline.yaml"
SIZES = [
    "detector.backbone.width=4",
    "detector.head.filters=8",
    "detector.head.num_convs=1",
    "data.short_side=[64]",
    "data.test_short_side=64",
    "data.long_side=64",
    "train.batch_size=4",
    "train.schedule.warmup_steps=2",
    "train.schedule.type=constant",
]


def tiny_config(data, *overrides):
    """The config of a tiny run on one device; `data` is a folder of `make_demo_dataset`."""
    one_device = ["train.strategy=one", "train.cpu_replicas=1"]
    return load_config(CONFIG, [*SIZES, *one_device, f"data.directory={data}", *overrides])
