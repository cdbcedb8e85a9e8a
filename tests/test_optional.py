"""Packages that few functions need are imported there, and a missing one is one clear error."""

import subprocess
import sys

import pytest

from sepc_tf.cli import main
from sepc_tf.data.tfds_source import load_tfds
from sepc_tf.errors import MissingPackageError

pytestmark = pytest.mark.same_on_both_stacks

OPTIONAL = "matplotlib", "sklearn", "tensorflow_datasets", "keras_cv", "keras_hub", "torch"
# These two are parts for the models of the package that they are named after.
THEIRS = "sepc_tf.kerascv", "sepc_tf.kerashub"


def test_every_module_can_be_imported_without_them():
    """Keras imports some of them where they are installed; this package waits for their use."""
    code = (
        f"import sys; sys.modules |= dict.fromkeys({OPTIONAL})  # None: cannot be imported\n"
        "import importlib, pkgutil, sepc_tf\n"
        "for module in pkgutil.walk_packages(sepc_tf.__path__, 'sepc_tf.'):\n"
        f"    if module.name not in ('sepc_tf.__main__', *{THEIRS}):\n"
        "        importlib.import_module(module.name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_missing_package_is_named_with_its_pip_command(monkeypatch, tmp_path, capsys):
    for module in ("sklearn.datasets", "tensorflow_datasets", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["make-demo-data", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the demo data set needs scikit-learn: pip install scikit-learn")
    assert not (tmp_path / "data").exists()
    with pytest.raises(MissingPackageError, match="pip install tensorflow-datasets"):
        load_tfds(tmp_path, "train")

    from sepc_tf.ablation import write_report

    with pytest.raises(MissingPackageError, match="pip install matplotlib"):
        write_report([], tmp_path / "report", "command")
    assert not (tmp_path / "report").exists()
