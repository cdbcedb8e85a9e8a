"""Shared fixtures: golden data (skipped with a reason where absent), two replicas on one CPU."""

import os
from pathlib import Path

import pytest

from sepc_tf.allocator import keep_freed_memory
from sepc_tf.cli.quiet import quiet_tensorflow

keep_freed_memory()
with quiet_tensorflow():
    import tensorflow as tf

    # Before anything else touches TensorFlow's devices.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )

FIGURES = "reliability"  # the property of a test that holds its line of figures


def pytest_addoption(parser):
    parser.addoption(
        "--reliability-tries",
        type=int,
        default=1,
        metavar="N",
        help="N times as many random faults in tests/reliability",
    )


def pytest_terminal_summary(terminalreporter):
    """Prints what tests/reliability counted; with xdist the tests ran in other processes."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = [text for report in reports for key, text in report.user_properties if key == FIGURES]
    if lines:
        terminalreporter.section("reliability: tries, survived, lost")
        terminalreporter.write_line("\n".join(sorted(lines)))


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


@pytest.fixture(scope="session")
def two_replicas():
    """The one MirroredStrategy of the process, over two logical CPU devices."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def pytest_runtest_setup(item):
    from sepc_tf.compat import KERAS_3  # not before TensorFlow's devices are set

    if not KERAS_3 and item.get_closest_marker("same_on_both_stacks"):
        pytest.skip("the same computation as on the default stack")
