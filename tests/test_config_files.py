from pathlib import Path

import pytest

from sepc_tf.config import load_config
from sepc_tf.config_files import CONFIG_DIR, config_names, find_config
from sepc_tf.errors import ConfigError

pytestmark = pytest.mark.same_on_both_stacks


def test_a_config_is_given_by_path_or_by_name(tmp_path, monkeypatch):
    assert len(config_names()) >= 36
    for name in config_names():
        assert find_config(name) == CONFIG_DIR / f"{name}.yaml"
    assert load_config("demo_sepc") == load_config(CONFIG_DIR / "demo_sepc.yaml")
    monkeypatch.chdir(tmp_path)
    Path("demo_sepc").write_text("train: {epochs: 3}")
    assert load_config("demo_sepc").train.epochs == 3, "a file of that path comes first"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("demo_spec", "did you mean the packaged config demo_sepc"),
        ("configs/demo_sepc.yaml", "did you mean the packaged config demo_sepc"),
        ("xyz", "`sepc-tf configs list` names"),
    ],
)
def test_a_missing_config_has_a_hint(path, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"config file {path} does not exist; {hint}"):
        load_config(path)


def test_a_base_is_a_file_and_never_a_packaged_name(tmp_path):
    (tmp_path / "a.yaml").write_text("_base_: demo_sepc")
    with pytest.raises(ConfigError, match="demo_sepc does not exist"):
        load_config(tmp_path / "a.yaml")
