"""Imports point down the list that the README shows, and never in a circle."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.same_on_both_stacks

ROOT = Path(__file__).parents[1]


def listed_rows():
    """The README's list: one list of names for each line, the highest first."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"Imports point down this list:\n\n```\n(.*?)```", text, re.S)[1]
    lines = block.split("sepc_tf/", 1)[1].splitlines()
    return [re.findall(r"[a-z0-9_]+", line) for line in lines if line.strip()]


def modules():
    """Dotted name -> file of every module of the package."""
    found = {}
    for path in (ROOT / "sepc_tf").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, known):
    """Modules of the package that a file imports anywhere in it, functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in known:
                    yield name
                elif node.module in known:
                    yield node.module


KNOWN = modules()
ROW_OF = {name: row for row, names in enumerate(listed_rows()) for name in names}
# The package's own name and its command stand above the list.
TOP = {"sepc_tf", "sepc_tf.__main__"}


def group(module):
    return module.split(".")[1]


def test_every_module_has_its_place_in_the_list():
    assert {group(module) for module in KNOWN if module not in TOP} == set(ROW_OF)


@pytest.mark.parametrize("module", sorted(set(KNOWN) - TOP))
def test_imports_point_down(module):
    upward = [
        target
        for target in imports(KNOWN[module], KNOWN)
        if target != "sepc_tf"
        and group(target) != group(module)
        and ROW_OF[group(target)] <= ROW_OF[group(module)]
    ]
    assert not upward


def test_no_module_imports_itself_around_a_corner():
    graph = {name: set(imports(path, KNOWN)) for name, path in KNOWN.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle
