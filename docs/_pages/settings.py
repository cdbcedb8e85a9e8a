"""The reference of the configs, from the dataclasses and the comments beside their fields."""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from _pages import source, table

_SIGNS = {"at_least": "≥ ", "above": "> ", "at_most": "≤ ", "below": "< "}
# Values of `Any` that are described elsewhere on the page.
_SEE = {"detector.options": "of the detector's type, [below](#options)"}


class Setting(NamedTuple):
    """One key of a config."""

    key: str
    type: str
    default: Any
    allowed: str
    meaning: str


def settings(module: str, name: str, prefix: str = "", owner: tuple | None = None,
             changed: dict | None = None) -> Iterator[Setting]:  # fmt: skip
    """The settings of a dataclass and of the dataclasses in it.

    Args:
        module: which can use the dataclass.
        name: of the dataclass.
        prefix: before the keys, with the final dot.
        owner: (module, class) of what it configures, whose docstring explains what has no comment.
        changed: defaults other than those of the dataclass.
    """
    where, cls = source.find(module, name)
    explained = _explained(*owner) if owner else {}
    for base in cls.bases:
        if isinstance(base, ast.Name):
            yield from settings(where.module, base.id, prefix, owner, changed)
    for node in cls.body:
        if not isinstance(node, ast.AnnAssign):
            continue
        field = node.target.id
        default, limits = node.value, {}
        if isinstance(default, ast.Call) and default.func.id == "setting":
            limits = {kw.arg: source.value(where.module, kw.value) for kw in default.keywords}
            default = default.args[0]
        if isinstance(default, ast.Call):  # a dataclass of its own
            other = {kw.arg: source.value(where.module, kw.value) for kw in default.keywords}
            yield from settings(where.module, default.func.id, f"{prefix}{field}.", owner, other)
            continue
        yield Setting(
            prefix + field,
            ast.unparse(node.annotation),
            (changed or {}).get(field, source.value(where.module, default)),
            _allowed(limits),
            _comment(where.lines, node) or explained.get(field, ""),
        )


def sections() -> Iterator[tuple[str, str, list[Setting]]]:
    """(heading, introduction, settings) of every part of a config."""
    for field in source.find("sepc_tf.config", "Config")[1].body:
        if isinstance(field, ast.AnnAssign):
            name = field.annotation.id
            _, cls = source.find("sepc_tf.config", name)
            key = field.target.id
            yield (
                f"`{key}`",
                ast.get_docstring(cls).splitlines()[0],
                list(settings("sepc_tf.config", name, f"{key}.")),
            )
    for heading, parts, prefix in (
        ("`detector.options` of", "DETECTORS", "detector.options."),
        ("`detector.necks`, an entry of", "NECKS", ""),
    ):
        for part, name in source.table("sepc_tf.zoo", parts).items():
            where, cls = source.find("sepc_tf.zoo", name)
            there, options = source.class_attribute(where, cls, "Options")
            summary = ast.get_docstring(cls).splitlines()[0]
            found = list(settings(there.module, options.id, prefix, (where.module, cls)))
            yield f"{heading} `type: {part}`", f"`{name}`: {summary}", found


def page() -> str:
    """The page, as Markdown."""
    lines = [
        "# Configs: every setting",
        "",
        "What a YAML file, or `key=value` on the command line, may set; made of the dataclasses in",
        "the source. An unknown key, a value that is not allowed and a setting without effect are",
        "errors. `sepc-tf configs show NAME --resolved` prints a config with all of them.",
    ]
    for heading, introduction, found in sections():
        label = ["", "(options)="] if heading.endswith("retinanet`") else []
        lines += [*label, "", f"## {heading}", "", introduction, ""]
        if not found:
            continue
        lines += table(["key", "type", "default", "allowed", "meaning"], map(_row, found))
    return "\n".join(lines) + "\n"


def _row(item):
    default = f"`{yaml_value(item.default)}`"
    meaning = _SEE.get(item.key, item.meaning)
    return [f"`{item.key}`", item.type, default, item.allowed, meaning]


def yaml_value(value: Any) -> str:
    """A value as it stands in a config."""
    text = json.dumps(value)
    return re.sub(r'"(\w+)"(: )?', r"\1\2", text)


def _allowed(limits):
    if "choices" in limits:
        return ", ".join(f"`{yaml_value(choice)}`" for choice in limits["choices"])
    return ", ".join(f"{sign}{limits[name]:,}" for name, sign in _SIGNS.items() if name in limits)


def _comment(lines, node):
    """The comment on the lines of a field, or the one above it."""
    rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
    if "#" in rest:
        return rest.partition("#")[2].strip()
    above = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    return " ".join(above)


def _explained(module, cls):
    """Name -> text of the arguments that the docstrings of a class and of its bases describe."""
    texts = {}
    for base in cls.bases:
        if isinstance(base, ast.Name):
            where, node = source.find(module, base.id)
            texts |= _explained(where.module, node)
    return texts | _arguments(ast.get_docstring(cls) or "")


def _arguments(docstring):
    block = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    entries = re.findall(
        r"^    ([\w, ]+): (.*(?:\n     .*)*)", block[1] if block else "", re.MULTILINE
    )
    return {
        name: re.sub(r"\s+", " ", text) for names, text in entries for name in names.split(", ")
    }
