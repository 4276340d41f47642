"""What the C library does with freed arrays, where it can be told.

A step makes and frees the same arrays of some megabytes again and again. By default glibc hands large free blocks back to
the system, which has to clear and map every page of the next step anew: a tenth of a meta-step on a CPU, more where they are
slow (virtual machines). Other C libraries, and GPUs, are left as they are.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT, MAPPED = (
    2**31 - 1,
    32 * 2**20,
)  # bytes: free memory that is kept at most; arrays from which on each is mapped by itself


def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_freed() -> bool:
    """From now on freed arrays stay with the process, for its next ones; whether that could be said."""
    library = _library()
    return library is not None and all(
        library.mallopt(option, value) == 1 for option, value in ((M_TRIM_THRESHOLD, KEPT), (M_MMAP_THRESHOLD, MAPPED))
    )


def give_back() -> None:
    """Hand what is free now back to the system: so that memory in use can be told from memory that was."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)
