"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file atomically: a killed process leaves the old file or the new one."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Writes JSON atomically; see `write_text`."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: str | Path, default: Any) -> Any:
    """Reads JSON, or returns `default` where the file is missing or cut off."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
