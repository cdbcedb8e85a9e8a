"""Reading the package's source without importing it."""

import ast
import functools
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Source(NamedTuple):
    """A module: its dotted name, syntax tree and lines."""

    module: str
    tree: ast.Module
    lines: list[str]


@functools.cache
def read(module: str) -> Source:
    """The source of a module of the package, as "sepc_tf.zoo"."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    return Source(module, ast.parse(text), text.splitlines())


def find(module: str, name: str) -> tuple[Source, ast.AST]:
    """Where a name that a module can use is defined: the module, the statement there."""
    source = read(module)
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return source, node
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return source, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return find(node.module, alias.name)
    raise LookupError(f"{module} defines no {name}")


def value(module: str, node: ast.expr):
    """The value of an expression of numbers, strings and constants of the package."""
    names = {
        name.id: value(*_constant(module, name.id))
        for name in ast.walk(node)
        if isinstance(name, ast.Name)
    }
    return eval(compile(ast.Expression(node), module, "eval"), {"__builtins__": {}}, names)


def table(module: str, name: str) -> dict[str, str]:
    """A table of names: key -> name of the value, of `name = {"key": Value, ...}`."""
    _, node = find(module, name)
    return {key.value: item.id for key, item in zip(node.value.keys, node.value.values)}


def class_attribute(source: Source, cls: ast.ClassDef, name: str) -> tuple[Source, ast.expr]:
    """The expression of `name = ...` in a class or the classes that it inherits from."""
    for node in cls.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return source, node.value
    for base in cls.bases:
        if isinstance(base, ast.Name):
            found = class_attribute(*find(source.module, base.id), name)
            if found:
                return found
    return None


def _constant(module, name):
    source, node = find(module, name)
    return source.module, node.value
