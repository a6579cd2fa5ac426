"""Keep freed memory in the process, so that large arrays cause no page faults at every step."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse large freed blocks instead of returning them to the kernel.

    Every training step allocates and frees the same large arrays; mapping fresh pages for them took
    half of the fused method's time. The setting affects the whole process, so the program decides:
    the commands call this function, the library does not.

    Returns:
        True if the setting took effect; with other C libraries nothing happens.

    Examples:
        >>> import blockspike as bs
        >>> bs.keep_freed_memory() in (True, False)  # once, at the start of a program
        True
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
