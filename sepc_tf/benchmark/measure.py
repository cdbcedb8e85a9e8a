"""How time and memory are measured."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


def environment() -> dict[str, Any]:
    """What the numbers depend on: versions, processor, what else the machine did."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return {
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def environment_line(environment: dict[str, Any]) -> str:
    """What `environment` returned, as the sentence above a table."""
    return (
        f"TensorFlow {environment['tensorflow']}, Python {environment['python']}, "
        f"{environment['processor']}, {environment['cores']} cores, load average at the start "
        f"{environment['load_average']:.1f}."
    )


def interleaved(
    forms: dict[str, Callable[[], Any]], repeats: int, warmup: int = 2
) -> dict[str, np.ndarray]:
    """Name -> array of `repeats` times in seconds; round by round, after `warmup` calls of each."""
    for run in forms.values():
        for _ in range(warmup):
            run()
    times = {name: np.empty(repeats) for name in forms}
    for i in range(repeats):
        for name, run in forms.items():
            started = time.perf_counter()
            run()
            times[name][i] = time.perf_counter() - started
    return times


def in_new_process(module: str, function: str, *arguments: Any, **variables: str) -> Any:
    """Returns what `function(*arguments)` of a module returns in a fresh process, or None.

    Args:
        module: full name of the module.
        function: its function; what it returns can be written by `json`.
        *arguments: numbers, strings, None and bools, lists of them.
        **variables: environment variables of the process.

    Returns:
        None where the process failed; what it wrote is shown then.
    """
    call = f"importlib.import_module({module!r}).{function}(*{arguments!r})"
    code = f"import importlib, json; print(json.dumps({call}))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
    )
    if result.returncode:
        print(f"{function}{arguments} failed:\n{result.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(result.stdout.splitlines()[-1])


def status_kb(field: str) -> int:
    """A field of this process' status, in kB: VmRSS is what it holds, VmHWM the most it held."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def peak_mb(run: Callable[[], Any]) -> float:
    """MB by which the most that is held during `run()` exceeds what is held before it.

    It runs twice before, so that nothing of tracing and compiling is in the number. Blocks that are
    freed must go back to the system at once for it: `MALLOC_MMAP_THRESHOLD_=65536`.
    """
    run()
    run()
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # the most that was held becomes what is held
    before = status_kb("VmRSS")
    results = run()  # kept until the end
    growth = (status_kb("VmHWM") - before) / 1024
    del results
    return growth
