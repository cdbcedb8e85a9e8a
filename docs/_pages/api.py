"""The public interface, from its docstrings."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator

from _pages import source

_SECTION = re.compile(r"^([A-Z][a-z]+(?: arguments)?):\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^([\w*][^:\n]*): ((?:.*\n?)(?: .*\n?|\n(?= ))*)", re.MULTILINE)


def pages() -> Iterator[tuple[str, str]]:
    """(file name, Markdown) of every page: a page for each group of names in `sepc_tf`."""
    files = []
    for title, names in groups():
        files.append("api_" + re.sub(r"\W+", "_", title.lower()))
        entries = "\n".join(_entry(name, *source.find(module, name)) for name, module in names)
        yield files[-1], f"# {title}\n\n{entries}"
    usage = ast.get_docstring(source.read("sepc_tf").tree)
    code = textwrap.dedent(re.search(r"(?:^    .*\n|^\n)+", usage, re.MULTILINE)[0]).strip()
    toctree = "\n".join(files)
    yield (
        "api",
        "# API\n\nEverything public is a name of `sepc_tf`:\n\n"
        f"```python\n{code}\n```\n\n```{{toctree}}\n{toctree}\n```\n",
    )


def groups() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, [(name, module), ...]) of the comments and names in the package's table."""
    where, node = source.find("sepc_tf", "_DEFINED_IN")
    title, names = "", []
    for key, module in zip(node.value.keys, node.value.values):
        above = where.lines[key.lineno - 2].strip()
        if above.startswith("#"):
            if names:
                yield title, names
            title, names = above.strip("# ."), []
        names.append((key.value, module.value))
    yield title, names


def markdown(docstring: str) -> str:
    """A docstring of this package as Markdown."""

    def section(match):
        title, block = match[1], textwrap.dedent(match[2]).strip("\n")
        if title == "Example":
            return f"**{title}**\n\n```pycon\n{block}\n```\n\n"
        entries = _ENTRY.findall(block + "\n")
        if title != "Returns" and entries:
            block = "\n".join(f"- {_code(name)}: {_one_line(text)}" for name, text in entries)
        return f"**{title}**\n\n{block}\n\n"

    return _SECTION.sub(section, inspect.cleandoc(docstring) + "\n")


def _entry(name, where, node):
    lines = [f"({name})=", f"## {name}", "", f"```python\n{_signature(name, where, node)}\n```", ""]
    lines += [f"Defined in `{where.module}`.", "", markdown(ast.get_docstring(node)), ""]
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            docstring = ast.get_docstring(method)
            if docstring and not _is_property(method):
                title = f"{name}.{method.name}"
                signature = _signature(method.name, where, method)
                lines += [f"### {title}", "", f"```python\n{signature}\n```", ""]
                lines += [markdown(docstring), ""]
    return "\n".join(lines)


def _signature(name, where, node):
    if isinstance(node, ast.ClassDef):
        node = _constructor(where, node)
        if node is None:
            return f"class {name}"
    arguments = [text for text in _arguments(node.args) if text not in ("self", "cls")]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    returns = "" if node.name == "__init__" else returns
    line = f"{name}({', '.join(arguments)}){returns}"
    if len(line) <= 88:
        return line
    return f"{name}(\n" + "".join(f"    {text},\n" for text in arguments) + f"){returns}"


def _arguments(args):
    """Each argument as it is written."""
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    yield from map(_argument, positional, defaults)
    if args.vararg:
        yield "*" + ast.unparse(args.vararg)
    elif args.kwonlyargs:
        yield "*"
    yield from map(_argument, args.kwonlyargs, args.kw_defaults)
    if args.kwarg:
        yield "**" + ast.unparse(args.kwarg)


def _argument(argument, default):
    if default is None:
        return ast.unparse(argument)
    equals = " = " if argument.annotation else "="
    return f"{ast.unparse(argument)}{equals}{ast.unparse(default)}"


def _constructor(where, cls):
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return node
    for base in cls.bases:
        if isinstance(base, ast.Name) and where.module.startswith("sepc_tf"):
            try:
                found = _constructor(*source.find(where.module, base.id))
            except LookupError:
                continue
            if found:
                return found
    return None


def _is_property(method):
    return any(
        isinstance(item, ast.Name) and "property" in item.id for item in method.decorator_list
    )


def _code(names):
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _one_line(text):
    return re.sub(r"\s+", " ", text).strip()
