"""The table of word vectors in use: one copy in a process for all its policies, and one on the machine for its workers.

A policy folder holds the table, so that it can be copied anywhere. What a process reads decisions from is not that
file: were it written over in place (`cp` does that), every process that has it mapped would be killed by SIGBUS. So the
first process that needs a table copies it to a folder of the user's own, `$TMPDIR/tracer-<uid>/<sha256>.npy`, where
nobody writes to it again, and all map that copy: the operating system keeps its pages once. Where there is no such
place (a read-only container), the process keeps a copy in its own memory.
"""

import errno
import fcntl
import hashlib
import io
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from policies.artifact import Manifest, check_file, read_file
from policies.errors import PolicyDamaged

logger = logging.getLogger(__name__)

Words = NDArray[np.float16]

ROLE = "table/words.npy"
_NEW = ".new-"
_LOCK_SECONDS = 5.0

_OPEN: WeakValueDictionary[str, Words] = WeakValueDictionary()
_OPENING = threading.Lock()


def to_file(vectors: Words) -> dict[str, bytes]:
    """The table (V, d) as the file that a policy folder keeps, by its role."""
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    return {ROLE: buffer.getvalue()}


def load_words(path: str | Path, manifest: Manifest) -> Words:
    """The table (V, d) of the policy folder `path`, not to be written to. Raises PolicyDamaged."""
    place, sha256 = check_file(path, manifest, ROLE)
    try:
        # The lock is for threads that load several policies at once: each would map a table of its own.
        with _OPENING:
            table = _OPEN.get(sha256)
            if table is None:
                table = _OPEN[sha256] = _opened(path, manifest, place, sha256)
    except ValueError as error:
        raise PolicyDamaged(f"{place}: not a table of word vectors ({error})") from error
    return table


def _opened(path: str | Path, manifest: Manifest, place: Path, sha256: str) -> Words:
    try:
        return _table(np.load(_shared(place, sha256), mmap_mode="r", allow_pickle=False))
    except OSError as error:
        logger.info("the word vectors are not shared with other processes: %s", error)
        return _table(np.load(io.BytesIO(read_file(path, manifest, ROLE)), allow_pickle=False))


def _table(found: NDArray[np.generic]) -> Words:
    if found.ndim != 2 or found.dtype != np.float16 or not found.flags.c_contiguous:
        raise ValueError(f"{found.dtype} of shape {found.shape}")
    # Without the class of a mapping: it costs time wherever the array is looked at.
    return np.asarray(found)


def _shared(place: Path, sha256: str) -> Path:
    """The copy of `place` that all processes of this user map, made where it is missing. Raises OSError."""
    folder = _own_folder()
    copy = folder / f"{sha256}.npy"
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Workers start together: each would make a copy, and map its own.
        _lock(handle, folder)
        if not copy.is_file() or _digest(copy) != sha256:
            _copy(place, copy, sha256)
    finally:
        os.close(handle)
    return copy


def _lock(handle: int, folder: Path) -> None:
    """The folder's lock, and no files that a process which died at it has left. Raises OSError where it takes long."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            # Who holds it may have been stopped: one process must not keep all others from starting.
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
    for left in folder.glob(f"{_NEW}*"):
        left.unlink(missing_ok=True)


def _copy(place: Path, copy: Path, sha256: str) -> None:
    """A copy that is there whole or not at all, under a name that no other file had before."""
    handle, name = tempfile.mkstemp(prefix=_NEW, dir=copy.parent)
    fresh = Path(name)
    try:
        with os.fdopen(handle, "wb") as target, place.open("rb") as source:
            shutil.copyfileobj(source, target)
        fresh.chmod(0o400)
        if _digest(fresh) != sha256:
            raise OSError(errno.EIO, "altered while it was copied", str(place))
        fresh.replace(copy)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _own_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"tracer-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    # Where others may write, another user could have made it first, and put what he likes into it.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise OSError(errno.EPERM, "not a folder of this user alone", str(folder))
    return folder


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
