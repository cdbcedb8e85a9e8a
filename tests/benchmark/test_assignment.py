"""Label assignment stays within its memory, whatever the number of objects."""

import sys

import pytest

from sepc_tf.benchmark import assignment
from sepc_tf.benchmark.measure import in_new_process

pytestmark = pytest.mark.same_on_both_stacks

# The coverage of every anchor and class, which is a result.
OUTPUT_MB = 4 * 201600 * assignment.NUM_CLASSES / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "part", ["MaxIoUMatcher", "EffectiveAreaMatcher", "select_bags", "coverage"]
)
def test_at_most_100_mb_per_image(part):
    # All at once, 512 objects took 1.7 GB in MaxIoUMatcher.
    peaks = in_new_process(
        assignment.__name__, "_peaks", part, False, [8, 512], MALLOC_MMAP_THRESHOLD_="65536"
    )
    few, many = (mb - OUTPUT_MB * (part == "coverage") for mb in peaks)
    assert many < 100
    assert many < few + 40


def test_a_report_becomes_a_table():
    environment = {"tensorflow": "2", "python": "3", "processor": "p", "cores": 2,
                   "load_average": 0.0}  # fmt: skip
    memory, times = (
        [
            {"part": part, "compiled": compiled, "objects": 8, key: value}
            for part in assignment.PARTS
            for compiled in (False, True)
        ]
        for key, value in (("mb", 12.34), ("ms", None))
    )
    text = assignment.assignment_markdown(
        {"environment": environment, "memory": memory, "times": times}
    )
    assert "| part | mode | MB, M = 8 | ms, M = 8 |" in text
    assert "| coverage (FreeAnchor) | jit | 12.3 | not measured |" in text
