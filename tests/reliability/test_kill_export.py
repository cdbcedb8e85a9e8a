"""kill -9 in the middle of exports that take the place of an earlier one."""

import importlib.util
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from sepc_tf.errors import ModelError
from sepc_tf.export import SUFFIXES, export
from sepc_tf.exported import ExportedModel
from sepc_tf.runs import load_run

pytestmark = pytest.mark.reliability

PACKAGES = {"litert": "ai_edge_litert", "onnx": "onnxruntime"}
SIZE = (64, 64)

# Forked before TensorFlow computes anything, a child needs no start of its own. It is killed some
# time after its export has begun, or before it does something with a file for the n-th time.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from sepc_tf.export import export
from sepc_tf.runs import load_run

run_dir, checkpoint, format, place = sys.argv[1:5]
size = None if format == "saved_model" else (64, 64)
OF_FILES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "ctypes.dlsym"}

def child(moment, begun):
    run = load_run(run_dir, checkpoint)
    os.write(begun, b"x")
    events = 0

    def count(event, arguments):
        nonlocal events
        if event in OF_FILES or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            if str(arguments[0]).startswith(("/dev", "/proc")):
                return
            events += 1
            if events == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    if moment >= 1:
        sys.addaudithook(count)
    export(run, place, format, image_size=size)
    os._exit(0)

for line in sys.stdin:
    moment = float(line)
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        child(moment, writing)
    os.close(writing)
    os.read(reading, 1)
    if moment < 1:
        time.sleep(20 * moment)
        os.kill(process, signal.SIGKILL)
    os.close(reading)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""
