"""Configs: inheritance, overrides, and one clear error for everything that is wrong."""

from pathlib import Path

import pytest

from sepc_tf.config import ConfigError, config_to_yaml, differences, load_config

pytestmark = pytest.mark.same_on_both_stacks


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_overrides_what_it_inherits_and_overrides_win(tmp_path):
    write(tmp_path / "_base_/a.yaml", "train: {epochs: 3, batch_size: 4, seed: 5}")
    write(tmp_path / "_base_/b.yaml", "_base_: a.yaml\ntrain: {epochs: 6}")
    path = write(tmp_path / "c.yaml", "_base_: [_base_/b.yaml]\ntrain: {batch_size: 8}")
    config = load_config(path, ["train.seed=7", "data.short_side=[100, 200]"])
    assert (config.train.epochs, config.train.batch_size, config.train.seed) == (6, 8, 7)
    assert config.data.short_side == [100, 200]


def test_a_resolved_config_reads_back_equal(tmp_path):
    config = load_config(
        write(tmp_path / "a.yaml", "train: {optimizer: {options: {nesterov: true}}}")
    )
    assert load_config(write(tmp_path / "b.yaml", config_to_yaml(config))) == config


def test_differences_name_the_key_and_both_values(tmp_path):
    path = write(tmp_path / "a.yaml", "{}")
    changed = load_config(path, ["detector.head.variant=sepc"])
    assert differences(load_config(path), changed) == [
        "detector.head.variant: 'sepc_lite' -> 'sepc'"
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epocs=3", "did you mean train.epochs"),
        ("train.epochs=abc", "train.epochs: .*'abc'.*expected int"),
        ("train=3", "train: expected a section"),
        ("train.epochs=0", "train.epochs: 0: expected a number >= 1"),
        ("train.ema_decay=1.5", "train.ema_decay: 1.5: expected a number > 0 and < 1"),
        (f"train.optimizer.learning_rate={10**400}", "learning_rate: the number is too large"),
        (f"data.mean=[1.0, 2.0, {10**400}]", "data.mean: the number is too large"),
        ("train.optimizer.learning_rate=.nan", "learning_rate: nan: expected a number >= 0"),
        ("train.seed=-1", "train.seed: -1: expected a number >= 0"),
        ("detector.nms_pre=0", "detector.nms_pre: 0: expected a number >= 1"),
        ("detector.score_threshold=-1", "score_threshold: -1.0: expected a number >= 0 and < 1"),
        ("data.std=[1, 0, 1]", "data.std: .*: expected numbers > 0"),
        ("train.epochs", "expected key=value"),
        ("detector.head.variant=sep", "'sep' is none of: baseline, dcn, pconv"),
        ("data.short_side=[a]", r"data.short_side\[0\]: .*expected list\[int\]"),
        ("data.short_side_mode=range", "exactly two"),
        ("data.mean=[1.0]", "data.mean: expected three numbers"),
        ("train.cpu_replicas=99", "cannot be split"),
        ("train.seed=[", "no YAML"),
        ("train.seed=" + "1" * 5000, "no YAML .a value cannot be read: .*5000 digits.$"),
        ("train.optimizer.learning_rate=.inf", "learning_rate: inf: expected a number >= 0"),
        (
            "data.directory=${gone}",
            r"data.directory: .*'gone' not found .in a value, \$\{a.b\} stands",
        ),
        ("data.directory=${oc.env:GONE}", "data.directory: .*'GONE' not found"),
    ],
)
def test_a_wrong_override_is_one_clear_error(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "a.yaml", "{}"), [override])


def test_a_number_in_scientific_notation_is_a_number(tmp_path):
    path = write(tmp_path / "a.yaml", "train: {optimizer: {options: {epsilon: 1e-7}}}")
    config = load_config(path, ["train.optimizer.options.beta_2=1e-3"])
    assert config.train.optimizer.options == {"epsilon": 1e-7, "beta_2": 1e-3}


def test_another_source_does_not_inherit_where_the_data_is(tmp_path):
    write(tmp_path / "coco.yaml", "data: {train: {annotations: a.json, images: i}, long_side: 900}")
    path = write(tmp_path / "yolo.yaml", "_base_: coco.yaml\ndata: {source: yolo, directory: mine}")
    data = load_config(path).data
    assert (data.source, data.directory, data.train.annotations) == ("yolo", "mine", None)
    assert data.long_side == 900
    overridden = ["data.directory=here", "data.source=demo", "data.long_side=800"]
    data = load_config(tmp_path / "coco.yaml", overridden).data
    assert (data.source, data.directory, data.train.annotations) == ("demo", "here", None)
    assert load_config(tmp_path / "coco.yaml", ["data.source=coco"]).data.train.images == "i"


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"typo.yaml does not exist; did you mean typos.yaml"):
        write(tmp_path / "typos.yaml", "")
        load_config(tmp_path / "typo.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write(tmp_path / "bad.yaml", "a: [1"))
    with pytest.raises(ConfigError, match=r"empty.yaml: the file is empty; write \{\} to take"):
        load_config(write(tmp_path / "empty.yaml", "# nothing\n"))
    with pytest.raises(ConfigError, match="not valid YAML: nested too deep"):
        load_config(write(tmp_path / "deep.yaml", "[" * 500))
    for bases in ("3", "[3]", "{a.yaml: 1}"):
        with pytest.raises(ConfigError, match="_base_: expected a path or a list of paths, got "):
            load_config(write(tmp_path / "base.yaml", f"_base_: {bases}"))
    with pytest.raises(ConfigError, match="the key 'seed' stands twice"):
        load_config(write(tmp_path / "twice.yaml", "train: {seed: 1, seed: 2}"))
    with pytest.raises(ConfigError, match="expected `key: value`"):
        load_config(write(tmp_path / "list.yaml", "[1, 2]"))
    with pytest.raises(ConfigError, match="inherits from itself"):
        load_config(write(tmp_path / "loop.yaml", "_base_: loop.yaml"))


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[1].glob("configs/*.yaml")), ids=lambda path: path.stem
)
def test_every_published_config_loads(path):
    load_config(path)
