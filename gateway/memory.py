"""What is left over goes back to the operating system."""

import ctypes
import gc

_M_MMAP_THRESHOLD = -3
_APART = 262_144
_YOUNG = 10_000  # new containers between two collections; 700 where nobody says otherwise


def settle() -> None:
    """What exists now is taken to stay: no collection looks at it again while a call waits.

    And fewer collections from now on: a call leaves next to nothing that only they could find.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
    give_back()


def give_back() -> None:
    """Return freed memory to the operating system: of loading a policy megabytes stay behind. Takes milliseconds.

    By glibc's malloc_trim; elsewhere nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_large_blocks_apart() -> None:
    """Let the C library map every block above 256 KiB by itself, as it does at first.

    glibc's malloc puts them among the small ones once one of them has been freed, up to 32 MiB; what was freed then
    stays with the process behind whatever is still in use. See mallopt(3), M_MMAP_THRESHOLD. Elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _APART)
