"""Tables of the detectors, the necks and the packaged configs."""

import ast
import functools
import itertools
import re

from _pages import source, table
from sepc_tf.config_files import CONFIG_DIR, config_names, inherited_values


def page() -> str:
    """The page, as Markdown."""
    configs = {name: merged(name)["detector"] for name in config_names()}
    detectors = []
    for name, cls in source.table("sepc_tf.zoo", "DETECTORS").items():
        of_it = [config for config, detector in configs.items() if detector["type"] == name]
        small = sum(config.startswith("demo_") for config in of_it)
        count = f"{len(of_it) - small} for COCO, {small} small"
        detectors.append([f"`{name}`", _link(cls), _summary(cls), count])
    necks = [
        [f"`{name}`", _link(cls), _summary(cls)]
        for name, cls in source.table("sepc_tf.zoo", "NECKS").items()
    ]
    rows = [
        [f"`{name}`", f"`{detector['type']}`", _head(detector), _about(name)]
        for name, detector in configs.items()
    ]
    lines = [
        "# Detectors, necks and configs",
        "",
        "Made of the tables in `sepc_tf/zoo.py` and of `configs/`. Any head variant",
        "(`detector.head.variant`) and any neck stands before any one-stage detector; Faster R-CNN",
        "takes PConv as a neck (`{type: pconv}`).",
        *("", "## Detectors", ""),
        *table(["`detector.type`", "class", "what it learns", "configs"], detectors),
        *("", "## Necks", ""),
        *table(["`type` in `detector.necks`", "class", "what it computes"], necks),
        *(
            "",
            "## Configs",
            "",
            "`sepc-tf train --config NAME`; what each file says of itself.",
            "",
        ),
        *table(["name", "detector", "head", "about"], rows),
    ]
    return "\n".join(lines) + "\n"


def merged(name: str) -> dict:
    """The values of a packaged config with all that it inherits."""
    files = (values for _, values in inherited_values(CONFIG_DIR / f"{name}.yaml"))
    return functools.reduce(_merge, files, {"detector": {"type": "retinanet"}})


def _merge(first, second):
    both = {**first, **second}
    for key in first.keys() & second.keys():
        if isinstance(first[key], dict) and isinstance(second[key], dict):
            both[key] = _merge(first[key], second[key])
    return both


def _head(detector):
    """The head variant, where the detector has one."""
    if detector["type"] == "faster_rcnn":
        return ""
    return f"`{detector.get('head', {}).get('variant', 'sepc_lite')}`"


def _about(name):
    """The comment that a config begins with, without the commands in it."""
    text = (CONFIG_DIR / f"{name}.yaml").read_text(encoding="utf-8")
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    said = " ".join(line.lstrip("# ") for line in comment if not line.startswith("#   "))
    return re.sub(r"(?:^|(?<=\. ))(?:(?!\. ).)*(?::|, or)$", "", said).strip()


def _summary(cls):
    docstring = ast.get_docstring(source.find("sepc_tf.zoo", cls)[1])
    return docstring.split("\n\n")[0].replace("\n", " ")


def _link(cls):
    table = source.find("sepc_tf", "_DEFINED_IN")[1].value
    public = cls in (key.value for key in table.keys)
    return f"[`{cls}`](#{cls})" if public else f"`{cls}`"
