"""Builds the C++ operations on first use and loads them.

The library is compiled with the machine's compiler for the installed TensorFlow and kept in
`$XDG_CACHE_HOME/sepc_tf` (`~/.cache/sepc_tf`; without a home folder, a folder of the user's own
among the temporary files), under a name that holds the TensorFlow version and a hash of the
sources, the compiler and the processor: another TensorFlow or another machine sharing the folder
builds its own. Processes that start together wait for one build. A folder or a library that another
user could have written is never used.

`SEPC_TF_NATIVE=0` never builds nor loads; `SEPC_TF_NATIVE=1` makes a failure an error instead of a
fall-back. `CXX` names the compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from types import ModuleType

import tensorflow as tf

from sepc_tf.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SOURCES = Path(__file__).parent
# Traps and errno are given up, NaN and infinity are not: offsets may hold them.
OPTIMISATION = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"]

logger = logging.getLogger("sepc_tf")


class NativeUnavailableError(UserError, RuntimeError):
    """The C++ operations cannot be used; the message says why."""


@functools.cache
def load() -> ModuleType:
    """Returns the module of the C++ operations, built if necessary, once per process.

    Raises:
        NativeUnavailableError: switched off, no compiler, a folder that cannot be written or that
            others can write, or the build or the loading failed.
    """
    if os.environ.get("SEPC_TF_NATIVE") == "0":
        raise NativeUnavailableError("switched off by SEPC_TF_NATIVE=0")
    try:
        return tf.load_op_library(str(_built()))
    except (OSError, tf.errors.OpError, subprocess.SubprocessError) as error:
        raise NativeUnavailableError(
            f"the C++ operations failed to build or load: {error}"
        ) from error


@functools.cache
def callable_from_xla() -> bool:
    """Returns whether functions that XLA compiles for the CPU can call the C++ operations.

    Registers them with XLA the first time. Asks for `load` before.
    """
    register = ctypes.CDLL(str(_built())).SepcRegisterCustomCalls
    register.restype = ctypes.c_bool  # the default, int, would read bytes that C++ leaves open
    return register()


@functools.cache
def available() -> bool:
    """Returns whether `load` succeeds. Where it does not, says why in one log line, once.

    Raises:
        NativeUnavailableError: it does not, and `SEPC_TF_NATIVE=1` asks for it.
    """
    try:
        load()
    except NativeUnavailableError as error:
        setting = os.environ.get("SEPC_TF_NATIVE")
        if setting == "1":
            raise
        if setting != "0":
            logger.warning("portable operations are used instead of the C++ ones: %s", error)
        return False
    return True


@functools.cache
def _built():
    """Returns the path of the library for this TensorFlow, compiler and machine."""
    if fcntl is None:
        raise NativeUnavailableError("no file locks on this system")
    compiler = _compiler()
    folder = _folder()
    library = folder / f"ops-tf{tf.__version__}-{_fingerprint(compiler)}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)
    if not library.exists():
        with _locked(library.with_suffix(".lock")):
            # Another process may have built it while this one waited.
            if not library.exists():
                _build(compiler, library)
    _check_private(library)
    return library


def _folder():
    """Where the libraries of this user are kept."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "sepc_tf"
    try:
        return Path.home() / ".cache" / "sepc_tf"
    except RuntimeError:  # HOME is not set and the user is in no password file: a container
        return Path(tempfile.gettempdir()) / f"sepc_tf-{os.geteuid()}"


def _check_private(path):
    """Raises unless only this user can have written the file or folder."""
    status = path.stat()
    # A link can be exchanged by its owner, and one in a shared folder may be somebody else's.
    owners = {status.st_uid, path.lstat().st_uid}
    if owners != {os.geteuid()}:
        raise NativeUnavailableError(
            f"{path} belongs to user {min(owners - {os.geteuid()})}, not to this one "
            f"({os.geteuid()}), so code from it is not run; remove it or set XDG_CACHE_HOME to a "
            "folder of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NativeUnavailableError(
            f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o}), so code "
            "from it is not run; remove it, or chmod go-w it if you trust what it holds"
        )


def _compiler():
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    raise NativeUnavailableError(
        f"no C++ compiler found on the PATH (looked for {', '.join(names)})"
    )


def _sources():
    return sorted(SOURCES.glob("*.cc")) + sorted(SOURCES.glob("*.h"))


def _fingerprint(compiler):
    """A hash of everything the binary depends on, except the TensorFlow version."""
    digest = hashlib.sha256()
    for source in _sources():
        digest.update(source.read_bytes())
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=60
    ).stdout
    digest.update(version)
    digest.update(repr((OPTIMISATION, _processor(), tf.sysconfig.get_compile_flags())).encode())
    return digest.hexdigest()[:16]


def _processor():
    """What -march=native depends on."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return platform.machine(), line
    return platform.machine(), platform.processor()


@contextlib.contextmanager
def _locked(path):
    """Holds an exclusive lock on `path`, released by the system if the process dies."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(compiler, library):
    started = time.monotonic()
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    command = [
        compiler,
        *tf.sysconfig.get_compile_flags(),
        *OPTIMISATION,
        "-w",
        "-fPIC",
        "-shared",
        *[str(source) for source in _sources() if source.suffix == ".cc"],
        "-o",
        temporary,
        *tf.sysconfig.get_link_flags(),
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if result.returncode:
            raise NativeUnavailableError(f"{compiler} failed: {_reason(result)}")
        os.chmod(temporary, 0o700)  # the linker may have made a new file, by the umask
        # Readers never see a half-written library.
        os.replace(temporary, library)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    logger.info("built the C++ operations in %.1f s: %s", time.monotonic() - started, library)


def _reason(result):
    """The line of a failed compiler's output that says most."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    # Of the linker's two lines, "final link failed: ..." comes before "collect2: error: ...".
    telling = [line for line in lines if "error" in line or "failed" in line]
    return (telling or lines or [f"exit status {result.returncode}"])[0]
