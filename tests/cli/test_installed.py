"""The wheel, installed into an environment of its own and used from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import sepc_tf
from sepc_tf.compat import KERAS_3
from sepc_tf.config_files import CONFIG_DIR, config_names

ROOT = Path(__file__).parents[2]
SMALL = [
    *(
        "data.directory=data",
        "data.short_side=[64]",
        "data.test_short_side=64",
        "data.long_side=64",
    ),
    *("detector.backbone.width=8", "detector.head.filters=16", "detector.head.num_convs=1"),
    *("train.strategy=one", "train.cpu_replicas=1", "train.epochs=1", "train.batch_size=4"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what is in git, as a build leaves files in its source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "configs", "sepc_tf"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--wheel-dir", folder, source], check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs `sepc-tf` of a new environment in an empty folder; returns standard output.

    TensorFlow and the rest are those of the environment that runs the tests.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = Path(
        subprocess.run(
            [venv / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()
    )  # fmt: skip
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        venv / "bin/python",
    ]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", wheel], check=True)
    # Plain paths: the .pth files there, as the one of an editable installation, are not followed.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = folder / "work"
    work.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}

    def run(*arguments):
        result = subprocess.run(
            [venv / "bin/sepc-tf", *arguments], cwd=work, env=environment, capture_output=True,
            text=True, timeout=600,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result.stdout

    run.folder, run.python, run.environment = work, venv / "bin/python", environment
    return run


@pytest.mark.slow
def test_it_is_the_installed_package_that_runs(installed):
    code = "import sepc_tf.config_files as c; print(c.CONFIG_DIR)"
    output = subprocess.run(
        [installed.python, "-c", code], cwd=installed.folder, env=installed.environment,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert str(installed.python.parents[1]) in output
    assert installed("--version") == f"{sepc_tf.__version__}\n"


@pytest.mark.slow
def test_its_configs_are_the_checkout_s(installed):
    assert installed("configs", "list").split() == config_names()
    installed("configs", "copy", "retinanet_r50_sepc_1x", "copied")
    for file in ("retinanet_r50_sepc_1x.yaml", "_base_/coco.yaml"):
        copy = installed.folder / "copied" / file
        assert copy.read_bytes() == (CONFIG_DIR / file).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not KERAS_3, reason="the same files run as on the default stack")
def test_train_evaluate_predict_export(installed):
    installed("make-demo-data", "data", "--train-images", "8", "--val-images", "2")
    installed("train", "--config", "demo_sepc_lite", "--run-dir", "run", *SMALL)
    assert list((installed.folder / "run/checkpoints").glob("step_*.npz"))
    assert "AP75" in installed("evaluate", "--run-dir", "run", "--checkpoint", "last")
    installed("predict", "--run-dir", "run", "--out", "pictures", "data/val")
    assert len(list((installed.folder / "pictures").glob("*.jpg"))) == 2
    installed("predict", "--model", "demo", "--out", "demo", "data/val")
    assert len(list((installed.folder / "demo").glob("*.jpg"))) == 2
    installed("export", "--run-dir", "run", "--out", "served")
    assert (installed.folder / "served/saved_model.pb").is_file()


def test_a_checkout_without_installation_has_its_configs(tmp_path):
    """And an editable installation, whose modules lie in the checkout as well."""
    code = (
        f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]}\n"
        "from sepc_tf.config_files import CONFIG_DIR; print(CONFIG_DIR)"
    )
    # -S: site-packages, and what is installed there, is not looked at but for the path given.
    output = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert output.stdout == f"{ROOT / 'configs'}\n", output.stderr
