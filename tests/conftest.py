"""Shared fixtures: the folder of golden data (skipped with a reason where it is absent)."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

SHARED = Path(os.environ.get("SEPC_TF_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def golden_dir():
    """The folder with the authors' outputs; set SEPC_TF_SHARED to point elsewhere."""
    if not (SHARED / "golden" / "manifest.json").is_file():
        pytest.skip(f"no golden data at {SHARED / 'golden'} (set SEPC_TF_SHARED)")
    return SHARED / "golden"


@pytest.fixture(scope="session")
def coco128_dir():
    """The folder with 128 real COCO images in COCO layout."""
    if not (SHARED / "data" / "coco128").is_dir():
        pytest.skip(f"no COCO images at {SHARED / 'data' / 'coco128'} (set SEPC_TF_SHARED)")
    return SHARED / "data" / "coco128"
