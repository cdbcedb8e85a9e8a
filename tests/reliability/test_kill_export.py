"""kill -9 in the middle of exports that take the place of an earlier one."""

import random
import subprocess
import sys

import numpy as np
import pytest
from small_run import need

from sepc_tf.export import SUFFIXES, export
from sepc_tf.exported import ExportedModel
from sepc_tf.runs import load_run
from sepc_tf.training.checkpoints import step_files

pytestmark = pytest.mark.reliability

# Forked before TensorFlow computes anything, a child needs no start of its own. It is killed a part
# of 15 s after its export has begun, or (moments of 1 and more) before it changes something in
# the file system from Python for the n-th time.
SCRIPT = """
import os, signal, sys, time
from sepc_tf.export import export
from sepc_tf.runs import load_run

run_dir, checkpoint, format, place = sys.argv[1:]
size = None if format == "saved_model" else (64, 64)
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "ctypes.dlsym"}  # the last: renameat2

def changes(event, arguments):
    if event == "open":
        path, _, flags = arguments
        return flags & (os.O_WRONLY | os.O_RDWR) and not str(path).startswith(("/dev", "/proc"))
    return event in CHANGES

def work(moment, begun):
    run = load_run(run_dir, checkpoint)
    os.write(begun, b"x")
    done = 0

    def count(event, arguments):
        nonlocal done
        if changes(event, arguments):
            done += 1
            if done == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    if moment >= 1:
        sys.addaudithook(count)
    export(run, place, format, image_size=size)
    os._exit(0)

for line in sys.stdin:
    moment = float(line)
    begun, writing = os.pipe()
    child = os.fork()
    if not child:
        work(moment, writing)
    os.close(writing)
    os.read(begun, 1)
    os.close(begun)
    if moment < 1:
        time.sleep(15 * moment)
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Exports:
    """A process that exports a run to one place, and is killed while it does."""

    def __init__(self, run_dir, checkpoint, format, place):
        arguments = [str(run_dir), checkpoint, format, str(place)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def killed(self, moment):
        """Whether the export was killed before it had ended."""
        self.process.stdin.write(f"{moment}\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        assert status in (0, -9)
        return status == -9

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()


def found(model, image):
    detections = model.detect(image[None])
    return np.concatenate([detections["boxes"].ravel(), detections["scores"].ravel()])


# Not OpenVINO: between the two files of its model a kill leaves one that is refused.
@pytest.mark.parametrize("format", ["saved_model", "litert", "onnx"])
def test_a_kill_while_exporting_leaves_the_old_or_the_new_one(
    whole, tmp_path, tries, figures, format
):
    need(format)
    rng = random.Random(0)
    size = None if format == "saved_model" else (64, 64)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    place = tmp_path / "exports" / f"model{SUFFIXES.get(format, '')}"
    _, earliest = step_files(whole / "checkpoints")[-1]
    export(load_run(whole, earliest), place, format, image_size=size)
    old = found(ExportedModel(place), image)
    names = sorted(path.name for path in place.parent.iterdir())
    # The other weights, exported where nobody is killed.
    export(load_run(whole, "best"), tmp_path / "other" / place.name, format, image_size=size)
    new = found(ExportedModel(tmp_path / "other" / place.name), image)
    assert not np.array_equal(old, new)

    def export_again():
        """The next export succeeds and clears what was left."""
        export(load_run(whole, earliest), place, format, image_size=size)
        assert sorted(path.name for path in place.parent.iterdir()) == names
        assert np.array_equal(found(ExportedModel(place), image), old)

    count = tries(2)
    replaced, litter, killed = 0, 0, 0
    with Exports(whole, "best", format, place) as exports:
        for number in range(count):
            moment = rng.randint(1, 12) if number % 2 == 0 else rng.random()
            killed += exports.killed(moment)
            litter += sorted(path.name for path in place.parent.iterdir()) != names
            now = found(ExportedModel(place), image)
            assert np.array_equal(now, old) or np.array_equal(now, new), f"kill {number}: {moment}"
            if np.array_equal(now, new):  # else the next one is killed on top of what was left
                replaced += 1
                export_again()
    export_again()
    figures(
        f"kill -9 while exporting: {format}",
        count,
        count,
        f"{killed} before the end, {replaced} with the new one in place, {litter} leaving a folder",
    )
