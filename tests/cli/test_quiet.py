"""TensorFlow's lines about itself are left out, and nothing else is, whatever happens."""

import logging
import os
import subprocess
import sys

import pytest

from sepc_tf.cli import _StandardOutput
from sepc_tf.cli.quiet import KNOWN

# As TensorFlow 2.21 and 2.15 print them on machines without a GPU.
NOISE = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795519061.499137   11240 cudart_stub.cc:31] Could not find cuda drivers on your machine
I0000 00:00:1795519061.564609   11240 cpu_feature_guard.cc:227] This TensorFlow binary is optimized
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with the ...
E0000 00:00:1795519065.658629   11240 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA \
error: Failed call to cuInit: UNKNOWN ERROR (303)
2026-11-24 11:17:53.086778: I external/local_tsl/tsl/cuda/cudart_stub.cc:31] Could not find cuda
2026-11-24 11:17:53.127320: E external/local_xla/xla/stream_executor/cuda/cuda_dnn.cc:9261] Unable \
to register cuDNN factory: Attempting to register factory for plugin cuDNN when one has already
I0000 00:00:1795519929.546118   16812 device_compiler.h:186] Compiled cluster using XLA!
2026-11-24 11:32:09.551260: E external/local_xla/xla/stream_executor/stream_executor_internal.h:177\
] SetPriority unimplemented for this stream.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
"""
WANTED = """\
W0000 00:00:1795519061.499137   11240 gpu_device.cc:2341] Cannot dlopen some GPU libraries.
E0000 00:00:1795519065.658629   11240 cuda_platform.cc:52] failed call to cuInit: ERROR (804)
F0000 00:00:1795519065.658629   11240 tensor.cc:12] Check failed: dtype() == expected_dtype
2026-11-24 11:17:53.127320: E tensorflow/core/util/util.cc:131] oneDNN supports DT_INT64 only
Traceback (most recent call last):
I0 think
UserWarning: WARNING: All log messages
"""


def run(body, **environment):
    """Runs `body` inside `quiet_tensorflow` in a new process, with `noise()` that writes NOISE."""
    code = (
        "import os, signal, sys\n"
        "from sepc_tf.cli.quiet import quiet_tensorflow\n"
        f"def noise(): os.write(2, {NOISE!r}.encode())\n"
        "with quiet_tensorflow():\n" + "".join(f"    {line}\n" for line in body.splitlines())
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"} | environment
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )


def test_known_lines_are_known():
    assert all(KNOWN.match(line.encode()) for line in NOISE.splitlines())
    assert not any(KNOWN.match(line.encode()) for line in WANTED.splitlines())


@pytest.mark.parametrize(("level", "shown"), [("2", ["a fault"]), ("0", ["Importing", "a fault"])])
def test_known_records_of_the_log_are_left_out(monkeypatch, capsys, level, shown):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    logger = logging.Logger("absl")
    logger.addHandler(_StandardOutput())
    logger.warning("Importing a function (%s) with ops with unsaved custom gradients. Will", "f_1")
    logger.warning("a fault")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(shown)
    assert all(line.startswith(start) for line, start in zip(lines, shown))


def test_known_lines_are_left_out_and_others_are_not():
    result = run(f"noise()\nos.write(2, {WANTED!r}.encode())\nnoise()\nprint('out')")
    assert (result.returncode, result.stdout, result.stderr) == (0, "out\n", WANTED)


def test_a_last_line_without_an_end_is_shown():
    assert run("noise()\nsys.stderr.write('the rest')").stderr == "the rest"


@pytest.mark.parametrize("level", ["0", "1"])
def test_they_are_shown_where_they_are_asked_for(level):
    assert run("noise()", TF_CPP_MIN_LOG_LEVEL=level).stderr == NOISE


def test_an_exception_brings_them_back_before_its_traceback():
    result = run("noise()\nimport nowhere_to_be_found")
    assert result.returncode == 1
    assert result.stderr.startswith(NOISE + "Traceback (most recent call last)")


@pytest.mark.parametrize("end", ["os.abort()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_crash_shows_everything(end):
    result = run(f"noise()\nos.write(2, b'Fatal: tensor.cc')\n{end}")
    assert result.returncode < 0
    assert "Fatal: tensor.cc" in result.stderr and all(
        line in result.stderr for line in NOISE.splitlines()
    )


def test_a_child_that_outlives_the_command_does_not_hold_it_up():
    body = "import subprocess\nchild = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)"
    # The child's own end of standard error is the filter's; capturing here would wait for it.
    code = (
        "import time\nfrom sepc_tf.cli.quiet import quiet_tensorflow\n"
        "start = time.monotonic()\nwith quiet_tensorflow():\n    "
        + body.replace("\n", "\n    ")
        + "\nassert time.monotonic() - start < 30\nchild.kill()"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


@pytest.mark.slow
def test_commands_are_quiet_and_verbose_ones_are_not(tmp_path):
    """Real ones, that import TensorFlow, look for devices, and compile with XLA."""
    command = [sys.executable, "-m", "sepc_tf"]
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}

    def stderr(*arguments):
        result = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr[-2000:]
        lines = result.stderr.splitlines()
        return [line for line in lines if not line.startswith("timing: ")]  # of the progress

    flops = ["flops", "--config", "demo_sepc", "--size", "64x64"]
    assert stderr(*flops) == []
    xla = ["deform-conv", "--batch", "1", "--map", "P7", "--repeats", "1", "--times-only"]
    assert stderr("benchmark", *xla) == []
    assert any("cc:" in line for line in stderr(*flops, "--verbose"))
