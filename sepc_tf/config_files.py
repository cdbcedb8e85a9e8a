"""Config files: YAML that inherits from other files, and the files that come with the package.

A file may name the files it inherits from in `_base_` (a path or a list of paths, relative to the
file); later values win over earlier ones. The packaged configs are `configs/` of a checkout, which
is part of every wheel; each is known by its name. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sepc_tf.errors import ConfigError
from sepc_tf.files import writing

# setup.py puts configs/ into the wheel as sepc_tf/configs; a checkout has it beside sepc_tf/.
_INSTALLED = Path(__file__).parent / "configs"
CONFIG_DIR = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "configs"


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-7` is a number, as it is everywhere else, and no key stands twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; raises `yaml.YAMLError`.

    Example:
        >>> parse_yaml("epsilon: 1e-7")
        {'epsilon': 1e-07}
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except RecursionError as error:
        raise yaml.YAMLError("nested too deep") from error
    except ValueError as error:  # a date that is none, a number of thousands of digits
        reason = str(error).partition("; use sys.")[0]
        raise yaml.YAMLError(f"a value cannot be read: {reason}") from error


def inherited_values(path: Path, children: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict]]:
    """Yields (file, values) of every file that a file inherits from, outermost first, then its own.

    Args:
        path: the YAML file.
        children: the files that led here, against circles.

    Raises:
        ConfigError: a file is missing, empty, no valid YAML, or inherits from itself.

    Example:
        >>> [(file.name, "detector" in values) for file, values in
        ...  inherited_values(find_config("demo_sepc_lite"))]
        [('demo.yaml', True), ('demo_sepc_lite.yaml', True)]
    """
    if path.resolve() in children:
        raise ConfigError(f"{path}: inherits from itself (through _base_)")
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist{_remedy(path)}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        raise ConfigError(f"{path}: the file is empty; write {{}} to take every default")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got a {type(values).__name__}")
    bases = values.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: _base_: expected a path or a list of paths, got {bases!r}")
    for base in bases:
        yield from inherited_values(path.parent / base, (*children, path.resolve()))
    yield path, values


def config_names() -> list[str]:
    """Names of the packaged configs, sorted.

    Example:
        >>> "demo_sepc_lite" in config_names()
        True
    """
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


def find_config(path: str | Path) -> Path:
    """The file that a user means by a path or by the name of a packaged config.

    Args:
        path: of a file, or one of `config_names()`; a file of that path comes first.

    Returns:
        path of the file, which may not exist.

    Example:
        >>> find_config("demo_sepc_lite").name
        'demo_sepc_lite.yaml'
    """
    if not Path(path).is_file() and str(path) in config_names():
        return CONFIG_DIR / f"{path}.yaml"
    return Path(path)


def config_files(path: str | Path) -> list[Path]:
    """The files that a config consists of, its own last.

    Args:
        path: of the file, or the name of a packaged config.

    Raises:
        ConfigError: as `inherited_values`.

    Example:
        >>> [file.name for file in config_files("demo_sepc_lite")]
        ['demo.yaml', 'demo_sepc_lite.yaml']
    """
    return list(dict.fromkeys(file for file, _ in inherited_values(find_config(path))))


def copy_config(name: str, directory: str | Path) -> list[Path]:
    """Copies a packaged config and the files that it inherits from, so that it works there.

    Args:
        name: of the packaged config.
        directory: where the copies go, made where it is missing; files of the same content that
            are there already stay.

    Returns:
        paths of the copies, the config's own last.

    Raises:
        ConfigError: there is no such config.
        FileExistsError: a file there has another content; nothing is copied.
        OutputError: the folder cannot be written to.

    Example:
        >>> [copy.as_posix() for copy in copy_config("demo_sepc_lite", "mine")]
        ['mine/_base_/demo.yaml', 'mine/demo_sepc_lite.yaml']
    """
    if name not in config_names():
        raise ConfigError(f"no packaged config is named {name}{_remedy(Path(name))}")
    sources = config_files(CONFIG_DIR / f"{name}.yaml")
    copies = [Path(directory) / source.relative_to(CONFIG_DIR) for source in sources]
    for source, copy in zip(sources, copies):
        if copy.exists() and copy.read_bytes() != source.read_bytes():
            raise FileExistsError(f"{copy} exists and differs; remove it or give another folder")
    for source, copy in zip(sources, copies):
        with writing(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    return copies


def _remedy(path):
    """Names like the one that was not found: files beside it, else packaged configs."""
    beside = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    if similar := difflib.get_close_matches(path.name, beside, n=3, cutoff=0.5):
        return f"; did you mean {', '.join(similar)}?"
    if similar := difflib.get_close_matches(path.stem, config_names(), n=3, cutoff=0.5):
        return f"; did you mean the packaged config {' or '.join(similar)}, given by name?"
    return "; `sepc-tf configs list` names the packaged configs"
