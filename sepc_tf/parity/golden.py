"""Reading a golden folder: its cases, their float64 references, their inputs as our tensors."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf


@dataclass
class Float64Reference:
    """A case as the authors' code computes it in float64; see `Stored` for the attributes."""

    name: str
    data: dict[str, np.ndarray]
    output_specs: dict[str, dict]


def load_cases(folders, pattern: str = "*") -> list:
    """The cases of golden folders whose names match `pattern`, as objects of their `recipe.py`.

    Args:
        folders: a folder with `manifest.json`, `recipe.py` and the `.npz` files, or a list of such.
        pattern: as in `fnmatch`, e.g. `"detector_*"`.

    Raises:
        FileNotFoundError: a folder is none, or no case of any matches.

    Example, with the authors' outputs in `golden`:
        >>> [case.name for case in load_cases("golden", "decode_*")]  # doctest: +SKIP
        ['decode_freeanchor', 'decode_fsaf', 'decode_retina']
    """
    folders = folders if isinstance(folders, list) else [folders]
    cases = [case for folder in folders for case in _folder_cases(Path(folder), pattern)]
    if not cases:
        raise FileNotFoundError(f"no case of {', '.join(map(str, folders))} matches {pattern!r}")
    return cases


def _folder_cases(folder, pattern):
    for name in ("manifest.json", "recipe.py"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no golden folder: it has no {name}")
    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    manifest = recipe.manifest(str(folder))
    names = fnmatch.filter(manifest["cases"], pattern)
    return [recipe.Case(manifest, name, str(folder)) for name in names]


def float64_reference(case) -> Float64Reference | None:
    """The float64 outputs of a case, from `f64/` in its folder; None if there are none of it.

    Raises:
        FileNotFoundError: `f64/manifest.json` lists the case, but its file is missing.
        ValueError: `f64/` was computed from other parameters (another seed).
    """
    folder = Path(case.root) / "f64"
    if not (folder / "manifest.json").is_file():
        return None
    manifest = json.loads((folder / "manifest.json").read_text())
    if case.name not in manifest["cases"]:
        return None
    if manifest["seed"] != case.seed:
        raise ValueError(
            f"{folder / 'manifest.json'}: seed {manifest['seed']!r}, expected {case.seed!r} as in "
            "the manifest.json of the cases; both must come from the same run"
        )
    entry = manifest["cases"][case.name]
    with np.load(folder / entry["file"]) as arrays:
        return Float64Reference(case.name, dict(arrays), entry["outputs"])


def nhwc(array: np.ndarray) -> tf.Tensor:
    """An NCHW array as an NHWC tensor."""
    return tf.constant(np.ascontiguousarray(array.transpose(0, 2, 3, 1)))


def nchw(tensor) -> np.ndarray:
    """An NHWC tensor as an NCHW array."""
    return np.asarray(tensor).transpose(0, 3, 1, 2)


def input_levels(case, infix: str) -> dict[int, tf.Tensor]:
    """The inputs `<prefix>.<infix>.<level>` as NHWC tensors by level, finest first."""
    levels = {}
    for key, value in case.inputs().items():
        head, _, level = key.rpartition(".")
        if level.isdigit() and f".{head}".endswith(f".{infix}"):
            levels[int(level)] = nhwc(value)
    return dict(sorted(levels.items()))


def level_inputs(case, infix: str) -> list[tf.Tensor]:
    """The maps of `input_levels`, without their numbers."""
    return [*input_levels(case, infix).values()]
