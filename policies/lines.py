"""The lines of a file through memory maps.

A file is read through memory maps of a block each, so memory does not grow with the file. Touching a mapped page that a
file no longer has kills the process (SIGBUS). So each block is mapped anew, which fails where the file has become
shorter, and copied at once: only a file cut in the moment of a copy, a hundredth of the time that reading takes, still
does that. Files that are appended to, or replaced by a rename as `write_traces` does, are safe.
"""

import mmap
import os
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

from policies.errors import TraceError

MAX_LINE_BYTES = 64 * 1024 * 1024

_BLOCK_BYTES = 1024 * 1024  # a multiple of every page size, for a map begins at a page
_BOM = b"\xef\xbb\xbf"


def read_lines(path: str | Path, on_read: Callable[[float], None]) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines that are not blank; None stands for a line over the limit."""
    number, shown = 0, 0.0
    begun = bytearray()  # a line whose end is still to come, no more of it than shows that it is too long
    for block, share in _blocks(path):
        if share >= shown + 0.01 or share == 1.0:
            on_read(share)
            shown = share
        *ended, rest = block.split(b"\n")
        if ended and begun:
            ended[0] = bytes(begun + ended[0])
            begun.clear()
        for line in ended:
            number += 1
            content = line.removeprefix(_BOM) if number == 1 else line
            if len(content) > MAX_LINE_BYTES:
                yield number, None
            elif content := content.rstrip():
                yield number, content
        begun += rest
        del begun[MAX_LINE_BYTES + len(_BOM) + 1 :]


def _blocks(path: str | Path) -> Iterator[tuple[bytes, float]]:
    """The file in blocks, each with the share of the file before it, and a newline that ends the last line."""
    try:
        with Path(path).open("rb") as file:
            size = _mappable_bytes(file)
            for start in range(0, size, _BLOCK_BYTES):
                yield _copy(path, file, start, min(_BLOCK_BYTES, size - start)), start / size
            while not size and (block := file.read1(_BLOCK_BYTES)):
                yield block, 0.0
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
    yield b"\n", 1.0


def _mappable_bytes(file: BufferedReader) -> int:
    """The file's size; 0 for what cannot be mapped: pipes, devices, empty files, some network and kernel files."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return 0
    try:
        mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ).close()
    except (OSError, ValueError):
        return 0
    return status.st_size


def _copy(path: str | Path, file: BufferedReader, start: int, length: int) -> bytes:
    try:
        with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start) as block:
            return block[:]
    except ValueError:  # the map would reach beyond the file's end
        raise TraceError(f"{path}: cannot be read: the file became shorter meanwhile") from None
