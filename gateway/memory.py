"""What is left over goes back to the operating system."""

import ctypes
import gc
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4
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
    let_go_of_code()


def give_back() -> None:
    """Return freed memory to the operating system: of loading a policy megabytes stay behind. Takes milliseconds.

    By glibc's malloc_trim; elsewhere nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def let_go_of_code() -> None:
    """Unmap the libraries' code, most of which only start-up needs: what is called again is back at its first call.

    Only pages that are executable and cannot be written to, which are as they stand in the file. Linux alone says which
    they are; elsewhere nothing happens. See madvise(2), MADV_DONTNEED.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None or not _MAPS.exists():
        return
    for line in _MAPS.read_text().splitlines():
        place, rights, _, _, inode, *_ = line.split(maxsplit=5)
        if rights == "r-xp" and inode != "0":
            start, end = (int(part, 16) for part in place.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def keep_large_blocks_apart() -> None:
    """Let the C library map every block above 256 KiB by itself, as it does at first.

    glibc's malloc puts them among the small ones once one of them has been freed, up to 32 MiB; what was freed then
    stays with the process behind whatever is still in use. See mallopt(3), M_MMAP_THRESHOLD. Elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _APART)
