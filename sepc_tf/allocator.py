"""Memory that TensorFlow frees stays with the process, for the next step to use."""

from __future__ import annotations

import ctypes
import os
import platform

# mallopt(3), by <malloc.h>
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Has the C library keep what is freed, instead of giving it back to the system at once.

    On the CPU TensorFlow takes every tensor from `malloc`. The GNU C library maps a large block
    anew each time and unmaps it when it is freed, so a step begins by having all its pages given
    by the system again, filled with zeros. With `M_MMAP_MAX` 0 and no trimming a step reuses the
    pages of the one before; `docs/results/allocator.md` has what that gains. The process keeps the
    most memory that it needed at one time until it ends. Call it before the first step of a
    program of your own; `sepc_tf.train` and the commands of `sepc-tf` do.

    Nothing is changed where the environment sets the allocator already (`MALLOC_...`, or
    `GLIBC_TUNABLES` with `glibc.malloc`), and on systems without the GNU C library.

    Returns:
        Whether it was changed.

    Source: mallopt(3) of the GNU C library.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _TOP_PAD_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)
