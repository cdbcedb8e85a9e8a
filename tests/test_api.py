"""The public interface: complete, resolvable, lazy, the same for people and type checkers."""

import ast
import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import sepc_tf

PACKAGE = Path(sepc_tf.__file__).parent


def in_new_process(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.split()


def test_importing_it_imports_no_tensorflow():
    code = (
        "import sys, sepc_tf, sepc_tf.cli, sepc_tf.config_files; dir(sepc_tf)\n"
        "print([m for m in ('tensorflow', 'keras', 'numpy') if m in sys.modules])"
    )
    assert in_new_process(code) == ["[]"]


@pytest.mark.parametrize("name", sepc_tf.__all__)
def test_every_name_is_there_and_documented(name):
    value = getattr(sepc_tf, name)
    assert name in dir(sepc_tf)
    if name != "__version__":
        assert inspect.getdoc(value) and value.__name__ == name
        assert value.__module__.startswith("sepc_tf.")


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    declared = {a.asname: node.module for node in block.body for a in node.names}
    assert declared == sepc_tf._DEFINED_IN
    assert (PACKAGE / "py.typed").is_file()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'sepc_tf' has no attribute 'Retinanet'"):
        _ = sepc_tf.Retinanet


@pytest.mark.parametrize("name", ["train", "export"])
def test_a_function_wins_over_the_module_of_its_name(name):
    code = (
        f"import sepc_tf\nfrom sepc_tf.{name} import {name} as function\n"
        f"import sys\nassert sepc_tf.{name} is function\n"
        f"from sepc_tf import {name}\nassert {name} is function\n"
        f"print(type(sys.modules['sepc_tf.{name}']).__name__)"
    )
    assert in_new_process(code) == ["module"]


def test_the_version_is_the_installed_one():
    assert metadata.version("sepc-tf") == sepc_tf.__version__


def public_functions():
    for name in sepc_tf.__all__:
        value = getattr(sepc_tf, name)
        if inspect.isfunction(value):
            yield value


# Their classes, `Config` and `Run`, stand above some of the functions in the order of imports.
FROM_ABOVE = {"config", "run"}


@pytest.mark.parametrize("function", public_functions(), ids=lambda f: f.__name__)
def test_public_functions_are_annotated(function):
    signature = inspect.signature(function)
    missing = {p.name for p in signature.parameters.values() if p.annotation is p.empty}
    assert missing <= FROM_ABOVE and signature.return_annotation is not signature.empty
