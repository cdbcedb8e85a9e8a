"""The C++ kernel on random problems of up to 700 channels, under sanitizers (fuzz_kernel.cc).

`SEPC_TF_FUZZ_SECONDS` makes the run longer than its few seconds, `SEPC_TF_FUZZ_SEED` another one.
"""

import os
import subprocess
from pathlib import Path

import pytest

from sepc_tf.ops import native

pytestmark = pytest.mark.same_on_both_stacks

SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
# Leaks are not looked for: that needs ptrace, which containers may not have.
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}


@pytest.fixture
def sanitized(tmp_path):
    """Function that compiles a source file with the sanitizers, or skips where there are none."""
    try:
        compiler = native._compiler()
    except native.NativeUnavailableError as error:
        pytest.skip(str(error))

    def build(source):
        program = tmp_path / source.stem
        command = [compiler, "-std=c++17", *native.OPTIMISATION, "-O1", "-g1", "-pthread"]
        command += [*SANITIZERS, f"-I{native.SOURCES}", str(source), "-o", str(program)]
        return program, subprocess.run(command, capture_output=True, text=True)

    (tmp_path / "nothing.cc").write_text("int main() { return 0; }\n")
    program, result = build(tmp_path / "nothing.cc")
    if result.returncode:
        pytest.skip(f"{compiler} has no sanitizers: {native._reason(result)}")
    if subprocess.run([program], env=ENVIRONMENT, capture_output=True).returncode:
        pytest.skip("programs with sanitizers do not run on this system")
    return build


def test_the_kernel_is_right_and_clean(sanitized):
    program, result = sanitized(Path(__file__).with_name("fuzz_kernel.cc"))
    assert result.returncode == 0, result.stderr
    seconds = os.environ.get("SEPC_TF_FUZZ_SECONDS", "5")
    seed = os.environ.get("SEPC_TF_FUZZ_SEED", "0")
    result = subprocess.run(
        [program, seconds, seed], env=ENVIRONMENT, capture_output=True, text=True
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
