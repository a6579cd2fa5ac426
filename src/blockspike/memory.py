"""Keep freed memory in the process, so that large arrays cause no page faults at every step."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_KEEP = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}
_DEFAULT = {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 * 1024}
_LARGE_BYTES = 2**20  # of a result; glibc maps blocks as large afresh each time, at first

_is_decided = _is_kept = False


def keep_freed_memory(keep: bool = True) -> bool:
    """Choose whether glibc's malloc reuses large freed blocks or returns them to the system.

    Every training step allocates and frees the same large arrays, and mapping fresh pages for them
    takes as long as the fused method itself. So the first simulation on a CPU whose current takes
    1 MiB or more makes malloc keep what is freed, up to 2 GiB at the end of the heap, for all code
    in the process. Call this function with False before that, if other programs on the machine need
    the memory more. Nothing changes by itself if the environment configures malloc (`MALLOC_…_`,
    `GLIBC_TUNABLES`).

    Args:
        keep: True to reuse freed blocks; False to leave malloc alone or, after True, to give it its
            first thresholds again.

    Returns:
        True if this changed malloc; with other C libraries nothing happens.

    Examples:
        >>> import blockspike as bs
        >>> bs.keep_freed_memory(False) in (True, False)  # leave the allocator as it is
        True
    """
    global _is_decided, _is_kept
    _is_decided = True
    if sys.platform != "linux" or keep == _is_kept:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    _is_kept = keep
    return all(mallopt(name, value) for name, value in (_KEEP if keep else _DEFAULT).items())


def keep_freed_memory_if_large(n_bytes: int) -> None:
    """Call `keep_freed_memory` before a large result, unless the program or user has decided."""
    if n_bytes >= _LARGE_BYTES and not _is_decided and not _is_configured():
        keep_freed_memory()


def _is_configured() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    names = ("mmap_max", "mmap_threshold", "trim_threshold")
    return any(f"MALLOC_{x.upper()}_" in os.environ or f"malloc.{x}" in tunables for x in names)
