"""Freed memory that stays: counted in page faults by the system."""

import importlib
import os
import platform
import subprocess
import sys

import pytest

import sepc_tf
from sepc_tf import cli
from sepc_tf.errors import ConfigError

pytestmark = [
    pytest.mark.same_on_both_stacks,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library"),
]

# 10 times the same 64 MB, each page of it written to.
PROGRAM = """
import resource, sys
from sepc_tf.allocator import keep_freed_memory
changed = keep_freed_memory() if sys.argv[1] == "keep" else None
counts = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(b"x") * 2**26
    del block
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(changed, counts[0], sum(counts[1:]))
"""


def faults(mode, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    changed, first, later = done.stdout.split()
    return changed, int(first), int(later)


def test_freed_memory_is_used_again_without_page_faults():
    _, first, later = faults("plain")
    assert later > 8 * first  # the C library's own way: every block anew
    changed, first, later = faults("keep")
    assert changed == "True"
    assert later < first / 10


@pytest.mark.parametrize(
    "environment", [{"MALLOC_ARENA_MAX": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=3"}]
)
def test_a_choice_made_in_the_environment_stays(environment):
    changed, first, later = faults("keep", **environment)
    assert changed == "False"
    assert later > 8 * first


def test_the_commands_and_training_call_it(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: called.append("command"))
    assert cli.main(["configs", "list"]) == 0
    training = importlib.import_module("sepc_tf.train")
    monkeypatch.setattr(training, "keep_freed_memory", lambda: called.append("training"))
    config = sepc_tf.load_config("demo_sepc_lite", ["train.batch_size=7"])
    with pytest.raises(ConfigError, match="cannot be split"):
        training.train(config, tmp_path)
    assert called == ["command", "training"]
