"""What is large is given back to the operating system as soon as it is free."""

import ctypes

_M_MMAP_THRESHOLD = -3
_APART = 262_144


def keep_large_blocks_apart() -> None:
    """Let the C library map every block above 256 KiB by itself, as it does at first.

    glibc's malloc puts them among the small ones once one of them has been freed, up to 32 MiB; what was freed then
    stays with the process behind whatever is still in use. See mallopt(3), M_MMAP_THRESHOLD. Elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _APART)
