"""What is left over goes back to the operating system."""

import ctypes
import gc


def settle() -> None:
    """What exists now is taken to stay: no collection looks at it again while a call waits."""
    gc.collect()
    gc.freeze()
    give_back()


def give_back() -> None:
    """Return freed memory to the operating system: of loading a policy megabytes stay behind. Takes milliseconds.

    By glibc's malloc_trim; elsewhere nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
