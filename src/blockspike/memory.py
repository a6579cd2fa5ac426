"""Keep freed memory in the process, so that large arrays do not fault in page by page each step."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse large freed blocks instead of returning them to the kernel.

    A training step allocates and frees the same large arrays every time; fresh pages for them took
    half of the fused method's time. Process-wide, so a program decides: the commands call it, the
    library does not.

    Returns:
        Whether it took effect (on other C libraries it does nothing).
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
