"""From a forwarded call to the trace store, without the call ever waiting.

`record` puts a trace into a bounded queue. A thread takes batches from it and writes them to the store; while the store
is away it writes them to the spool, tries the store again at growing intervals, and catches up when it is back.
A thread rather than a task: everything it does blocks, and at shutdown a store that hangs can be left behind.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from pathlib import Path

from gateway.metrics import Metrics
from gateway.spool import Spool
from policies.errors import StoreError
from policies.store import Store, flaw
from policies.types import StoredTrace

logger = logging.getLogger(__name__)

SPOOL_BYTES = 256 * 1024 * 1024
QUEUE_CHARS = 64 * 1024 * 1024

_BATCH = 512
_GATHER_SECONDS = 0.1
_FIRST_RETRY_SECONDS = 0.25
_LONGEST_RETRY_SECONDS = 30.0


class TraceLog:
    """The way of traces into the store at `store_url`.

    `capacity` bounds the traces waiting in memory, `queue_chars` their text, `spool_bytes` the file `spool`. What does
    not fit is dropped and counted.
    """

    def __init__(
        self,
        store_url: str,
        spool: Path,
        capacity: int,
        metrics: Metrics,
        *,
        spool_bytes: int = SPOOL_BYTES,
        queue_chars: int = QUEUE_CHARS,
    ) -> None:
        self._store_url = store_url
        self._spool = Spool(spool, spool_bytes)
        self._capacity = capacity
        self._queue_chars = queue_chars
        self._metrics = metrics
        self._queue: deque[StoredTrace] = deque()
        # Each of these counts is written by one thread only, so their differences need no lock.
        self._recorded = self._recorded_chars = 0
        self._finished = self._finished_chars = 0
        self._in_flight: list[StoredTrace] = []
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._store: Store | None = None
        self._retry_at = self._catch_up_at = 0.0  # on the monotonic clock
        self._retry_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="trace-log", daemon=True)
        metrics.trace_queue.set_function(lambda: self._recorded - self._finished)

    async def start(self) -> None:
        """Start writing. A store that cannot be opened is no error: traces spool until it can be."""
        self._wake.set()
        self._thread.start()

    def record(self, trace: StoredTrace) -> None:
        """Hand over a trace: never blocks, never raises. To be called from the event loop's thread only."""
        chars = len(trace.input)
        if (
            self._recorded - self._finished >= self._capacity
            or self._recorded_chars - self._finished_chars + chars > self._queue_chars
            or self._stopping.is_set()
        ):
            self._metrics.traces_dropped.inc()
            return
        self._recorded += 1
        self._recorded_chars += chars
        self._queue.append(trace)
        self._wake.set()

    async def stop(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109 - the contract of a bounded shutdown
        """Write what is recorded to the store, and what is left after `timeout` seconds to the spool."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout)
        # The thread was never started, or hangs in the store. What it holds may yet be stored: that does no harm.
        rest = [*self._in_flight, *self._queue]
        self._queue.clear()
        if rest:
            await asyncio.to_thread(self._to_spool, rest)

    def _run(self) -> None:
        while not (self._stopping.is_set() and not self._queue):
            try:
                self._wait()
                self._take()
                self._write()
                self._catch_up()
            except Exception:  # the border of a background task
                logger.exception("fault while writing traces; %d of them are lost", len(self._in_flight))
                self._metrics.internal_errors.labels("trace").inc()
                self._metrics.traces_dropped.inc(len(self._in_flight))
                self._finish()
                self._stopping.wait(_FIRST_RETRY_SECONDS)
        if self._store is not None:
            self._store.close()

    def _wait(self) -> None:
        """Until there is a batch worth writing, the spool is due, or all is over."""
        if not self._queue and not self._stopping.is_set():
            due = max(self._retry_at, self._catch_up_at) - time.monotonic()
            self._wake.wait(max(0.0, due) if self._spool.size() else None)
        self._wake.clear()
        if 0 < len(self._queue) < _BATCH:
            self._stopping.wait(_GATHER_SECONDS)

    def _take(self) -> None:
        while self._queue and len(self._in_flight) < _BATCH:
            self._in_flight.append(self._queue.popleft())

    def _write(self) -> None:
        """The batch, to the store or else to the spool."""
        batch = [trace for trace in self._in_flight if flaw(trace) is None]
        if len(batch) < len(self._in_flight):
            logger.error("%d traces break the store's rules and are lost", len(self._in_flight) - len(batch))
            self._metrics.traces_dropped.inc(len(self._in_flight) - len(batch))
        # Even without a batch: it opens the store, so that trouble shows at the start and not with the first trace.
        if self._to_store(batch):
            self._metrics.traces_stored.inc(len(batch))
        elif batch:
            self._to_spool(batch)
        self._finish()

    def _finish(self) -> None:
        self._finished += len(self._in_flight)
        self._finished_chars += sum(len(trace.input) for trace in self._in_flight)
        self._in_flight = []

    def _to_store(self, traces: list[StoredTrace]) -> bool:
        """Whether the store has them. After a failure it is left alone for a while, then opened anew."""
        if time.monotonic() < self._retry_at:
            return False
        try:
            if self._store is None:
                self._store = Store.open(self._store_url)
            self._store.append(traces)
        except StoreError as error:
            if self._store is not None:
                self._store.close()
                self._store = None
            if not self._retry_seconds:
                logger.warning("the trace store is away, traces spool to %s: %s", self._spool.path, error)
            self._retry_seconds = min(self._retry_seconds * 2 or _FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS)
            self._retry_at = time.monotonic() + self._retry_seconds
            return False
        if self._retry_seconds:
            logger.info("the trace store is back")
            self._retry_seconds = 0.0
        return True

    def _to_spool(self, traces: list[StoredTrace]) -> None:
        try:
            spooled = self._spool.append(traces)
        except OSError as error:
            logger.error("the spool %s cannot be written: %s", self._spool.path, error)
            spooled = 0
        self._metrics.traces_spooled.inc(spooled)
        self._metrics.traces_dropped.inc(len(traces) - spooled)

    def _catch_up(self) -> None:
        """One chunk of the spool, which may be an earlier process's, to the store."""
        if time.monotonic() < max(self._retry_at, self._catch_up_at):
            return
        try:
            chunk = self._spool.last()
            # Another process may be at it too. Both store the same traces then, and the one that cuts them off counts.
            if chunk is None or not self._to_store(chunk.traces) or not self._spool.cut(chunk):
                return
            self._metrics.traces_stored.inc(len(chunk.traces))
            if chunk.bad:
                logger.warning("%d lines of the spool %s were no traces", chunk.bad, self._spool.path)
                self._metrics.traces_dropped.inc(chunk.bad)
        except OSError as error:
            logger.error("the spool %s cannot be read: %s", self._spool.path, error)
            self._catch_up_at = time.monotonic() + _LONGEST_RETRY_SECONDS
