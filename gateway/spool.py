"""Traces kept in a file while the store is away: JSONL, one stored trace a line.

The file alone is the state. Traces are taken from its end and cut off once they are stored, so there is no position to
remember; several gateways may share one spool, and a process killed anywhere leaves at worst one half line or a trace
that is stored a second time, which the store ignores.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, get_type_hints

import orjson

from policies.store import flaw, from_row, to_row
from policies.types import StoredTrace

_CHUNK_BYTES = 512 * 1024
_TYPES = get_type_hints(StoredTrace)


@dataclass(frozen=True)
class Chunk:
    """The end of a spool: the bytes as they stand there, the traces they hold, and how many lines hold none."""

    raw: bytes
    traces: list[StoredTrace]
    bad: int


class Spool:
    """A bounded file of traces. Every method may raise OSError; the file is locked only while a method runs."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._limit = limit

    def size(self) -> int:
        """Bytes in the spool, 0 where there is none that could be read."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def append(self, traces: Sequence[StoredTrace]) -> int:
        """Add traces, on disk when this returns; how many of them, from the first, fitted below the limit."""
        if not traces:
            return 0
        with self._locked() as file:
            size = file.seek(0, os.SEEK_END)
            lines = [b"\n"] if _ends_in_half_line(file, size) else []
            head = len(lines)
            room = self._limit - size - head
            for trace in traces:
                line = orjson.dumps(to_row(trace), option=orjson.OPT_APPEND_NEWLINE)
                room -= len(line)
                if room < 0:
                    break
                lines.append(line)
            try:
                _write_all(file, b"".join(lines))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
        return len(lines) - head

    def last(self) -> Chunk | None:
        """The newest traces, about half a megabyte of them; None when the spool is empty."""
        if not self.size():
            return None
        with self._locked() as file:
            raw = _last_lines(file)
        parsed = [_from_line(line) for line in raw.split(b"\n") if line]
        traces = [trace for trace in parsed if trace is not None]
        return Chunk(raw, traces, len(parsed) - len(traces)) if raw else None

    def cut(self, chunk: Chunk) -> bool:
        """Take the chunk off the end; False, and nothing is done, where the end is another one by now."""
        with self._locked() as file:
            start = file.seek(0, os.SEEK_END) - len(chunk.raw)
            if start < 0:
                return False
            file.seek(start)
            if file.read() != chunk.raw:
                return False
            file.truncate(start)
            os.fsync(file.fileno())
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[FileIO]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that a failed write leaves nothing behind to be written later.
        with self.path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _write_all(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # on a disk that fills up, a write may take a part and say so only by its count
        rest = rest[file.write(rest) :]


def _ends_in_half_line(file: FileIO, size: int) -> bool:
    if size == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _last_lines(file: FileIO) -> bytes:
    """As many whole lines from the end as fit into a chunk, but one at least."""
    size = file.seek(0, os.SEEK_END)
    window = _CHUNK_BYTES
    while window < size:
        file.seek(size - window)
        raw = file.read(window)
        # The window's first line is whole only by luck; look for where the next one starts.
        start = raw.find(b"\n", 0, -1) + 1
        if start:
            return raw[start:]
        window *= 2
    file.seek(0)
    return file.read(size)


def _from_line(line: bytes) -> StoredTrace | None:
    """The trace in a line; None where the line is not one, as after a kill in the middle of a write."""
    try:
        row: Any = orjson.loads(line)
        trace = from_row(row) if isinstance(row, dict) else None
    except (orjson.JSONDecodeError, TypeError):
        return None
    if trace is None or not all(isinstance(getattr(trace, key), kind) for key, kind in _TYPES.items()):
        return None
    return None if flaw(trace) else trace
