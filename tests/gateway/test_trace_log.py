# ruff: noqa: ASYNC240 - a test may look at a file while its event loop has nothing else to do
"""The trace log: nothing waits for it, and what it took ends in the store, in the spool, or in the count of drops."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from gateway.metrics import Metrics
from gateway.trace_log import TraceLog
from policies.store import Store
from policies.types import AnswerKind, StoredTrace
from tests.postgres import Postgres

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "spool.jsonl"


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """The URL of a store that cannot be opened as long as the file `blocked` is there."""
    (tmp_path / "blocked").touch()
    return f"sqlite:///{tmp_path}/blocked/traces.db"


class Log:
    """A trace log with its metrics in reach."""

    def __init__(self, url: str, spool: Path, capacity: int = 10_000, **bounds: int) -> None:
        self.metrics = Metrics()
        self.log = TraceLog(url, spool, capacity, self.metrics, **bounds)

    def record(self, *numbers: int) -> None:
        for number in numbers:
            self.log.record(trace(number))

    def counts(self) -> tuple[int, int, int]:
        """Stored, spooled, dropped."""
        names = ("stored", "spooled", "dropped")
        stored, spooled, dropped = (self.metrics.registry.get_sample_value(f"tracer_traces_{n}_total") for n in names)
        return int(stored or 0), int(spooled or 0), int(dropped or 0)

    def waiting(self) -> int:
        return int(self.metrics.registry.get_sample_value("tracer_trace_queue") or 0)


def trace(number: int) -> StoredTrace:
    return StoredTrace(id=f"id-{number:05}", project="bank", input=f"message {number}", teacher="x", ts=float(number))


def stored_ids(url: str) -> list[str]:
    store = Store.open(url)
    ids = [stored.id for stored in store.traces(training_only=False)]
    store.close()
    return ids


def ids(*numbers: int) -> list[str]:
    return [trace(number).id for number in numbers]


def spooled_ids(spool: Path) -> list[str]:
    return [orjson.loads(line)["id"] for line in spool.read_bytes().splitlines()]


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)


async def test_recorded_is_stored(url: str, spool: Path) -> None:
    """What is recorded reaches the store by itself, complete and in batches, and only then counts as stored."""
    log = Log(url, spool)
    await log.log.start()
    log.record(*range(1500))
    await until(lambda: log.counts()[0] == 1500)
    assert stored_ids(url) == ids(*range(1500))
    await until(lambda: log.waiting() == 0)
    await log.log.stop()
    assert log.counts() == (1500, 0, 0)
    assert not spool.exists()


async def test_stop_writes_everything(url: str, spool: Path) -> None:
    """When stop returns, all that was recorded is in the store; what comes later is dropped and counted."""
    log = Log(url, spool)
    await log.log.start()
    log.record(*range(2000))
    await log.log.stop()
    assert stored_ids(url) == ids(*range(2000))
    log.record(2000)
    assert log.counts() == (2000, 0, 1)


async def test_same_id_twice(url: str, spool: Path) -> None:
    """A trace recorded twice is stored once."""
    log = Log(url, spool)
    await log.log.start()
    log.record(1, 1, 2)
    await log.log.stop()
    assert stored_ids(url) == ids(1, 2)


async def test_record_is_cheap(broken: str, spool: Path) -> None:
    """Recording costs microseconds, also while the store is away."""
    log = Log(broken, spool, capacity=20_000)
    traces = [trace(number) for number in range(10_000)]
    await log.log.start()
    started = time.perf_counter()
    for recorded in traces:
        log.log.record(recorded)
    assert time.perf_counter() - started < 0.5
    await log.log.stop()
    assert log.counts() == (0, 10_000, 0)


async def test_full_queue(spool: Path, tmp_path: Path) -> None:
    """A full queue drops and counts; what it held is in the spool after stop, even if writing was never started."""
    log = Log(f"sqlite:///{tmp_path}/traces.db", spool, capacity=5)
    log.record(*range(8))
    assert log.waiting() == 5
    assert log.counts() == (0, 0, 3)
    await log.log.stop()
    assert spooled_ids(spool) == ids(*range(5))
    assert log.counts() == (0, 5, 3)


async def test_queue_is_bounded_in_text(spool: Path, tmp_path: Path) -> None:
    """The queue is full when its texts are long, however few they are, and takes more once some are written."""
    log = Log(f"sqlite:///{tmp_path}/traces.db", spool, queue_chars=2_500_000)
    large = [replace(trace(number), input="x" * 1_000_000) for number in range(4)]
    for recorded in large[:3]:
        log.log.record(recorded)
    assert log.counts() == (0, 0, 1)
    await log.log.start()
    await until(lambda: log.waiting() == 0)
    log.log.record(large[3])
    await log.log.stop()
    assert log.counts() == (3, 0, 1)


async def test_store_that_appears(broken: str, spool: Path, tmp_path: Path) -> None:
    """A store that cannot be opened at the start is no error: traces spool, and are stored when it can be."""
    log = Log(broken, spool)
    await log.log.start()
    log.record(1, 2)
    await until(lambda: log.counts() == (0, 2, 0))
    assert spooled_ids(spool) == ids(1, 2)
    (tmp_path / "blocked").unlink()
    await until(lambda: log.counts() == (2, 2, 0))
    await until(lambda: spool.stat().st_size == 0)
    log.record(3)
    await log.log.stop()
    assert stored_ids(broken) == ids(1, 2, 3)


async def test_postgresql_that_restarts(postgres: Postgres, spool: Path) -> None:
    """Traces recorded while PostgreSQL is down are in it soon after it is up again."""
    url = postgres.new_database()
    log = Log(url, spool)
    await log.log.start()
    log.record(1)
    await until(lambda: log.counts() == (1, 0, 0))
    await asyncio.to_thread(postgres.stop)
    try:
        log.record(2, 3)
        await until(lambda: log.counts() == (1, 2, 0))
    finally:
        await asyncio.to_thread(postgres.start)
    await until(lambda: log.counts() == (3, 2, 0))
    await log.log.stop()
    assert stored_ids(url) == ids(1, 2, 3)
    assert spool.stat().st_size == 0


async def test_deleted_store(spool: Path, tmp_path: Path) -> None:
    """When the store's folder is deleted under a running gateway, later traces go into a new store."""
    url = f"sqlite:///{tmp_path}/store/traces.db"
    log = Log(url, spool)
    await log.log.start()
    log.record(1)
    await until(lambda: log.counts()[0] == 1)
    shutil.rmtree(tmp_path / "store")
    log.record(2)
    await until(lambda: log.counts()[0] == 2)
    await log.log.stop()
    assert stored_ids(url) == ids(2)


async def test_stop_does_not_wait_for_ever(spool: Path, tmp_path: Path) -> None:
    """A store that hangs does not hold up the end: after the timeout everything is in the spool, for the next start."""
    url = f"sqlite:///{tmp_path}/traces.db"
    Store.open(url).close()
    lock = sqlite3.connect(tmp_path / "traces.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    hanging = Log(url, spool)
    await hanging.log.start()
    hanging.record(*range(600))
    started = time.monotonic()
    await hanging.log.stop(timeout=0.3)
    assert time.monotonic() - started < 5
    assert sorted(set(spooled_ids(spool))) == ids(*range(600))
    lock.execute("ROLLBACK")
    lock.close()
    following = Log(url, spool)
    await following.log.start()
    await until(lambda: spool.stat().st_size == 0)
    await following.log.stop()
    assert stored_ids(url) == ids(*range(600))


async def test_spool_bound(broken: str, spool: Path) -> None:
    """The spool never grows beyond its bound; what does not fit is dropped and counted, and earlier traces stay."""
    log = Log(broken, spool, spool_bytes=10_000)
    await log.log.start()
    log.record(*range(300))
    await log.log.stop()
    _, spooled, dropped = log.counts()
    assert spooled + dropped == 300
    assert 0 < spooled < 60
    assert spool.stat().st_size <= 10_000
    assert spooled_ids(spool) == ids(*range(spooled))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
async def test_full_disk(broken: str) -> None:
    """With neither a store nor room for the spool, traces are dropped and counted, and nothing is raised."""
    log = Log(broken, Path("/dev/full"))
    await log.log.start()
    log.record(1, 2)
    await log.log.stop()
    assert log.counts() == (0, 0, 2)


async def test_spool_that_cannot_be_made(broken: str, tmp_path: Path) -> None:
    """A spool in an impossible place is found out without harm: traces are dropped and counted."""
    log = Log(broken, tmp_path / "blocked" / "spool.jsonl")
    await log.log.start()
    log.record(1, 2)
    await log.log.stop()
    assert log.counts() == (0, 0, 2)


async def test_spool_that_cannot_be_read(spool: Path, tmp_path: Path) -> None:
    """A spool that cannot be read does not keep traces from a store that is there."""
    spool.mkdir(parents=True)
    url = f"sqlite:///{tmp_path}/traces.db"
    log = Log(url, spool)
    await log.log.start()
    log.record(1, 2)
    await until(lambda: log.counts() == (2, 0, 0))
    await log.log.stop()


async def test_spool_of_an_earlier_process(broken: str, url: str, spool: Path) -> None:
    """A spool left behind is stored at the next start; half lines and foreign lines are skipped and counted."""
    before = Log(broken, spool)
    await before.log.start()
    before.record(1, 2, 3)
    await before.log.stop()
    content = spool.read_bytes()
    foreign = b'{"id": 5}\n["list"]\n\x00\x00\x00\n' + content.splitlines()[0].replace(b"1.0", b'"now"') + b"\n"
    spool.write_bytes(foreign + content + content[:40])
    log = Log(url, spool)
    await log.log.start()
    await until(lambda: spool.stat().st_size == 0)
    await log.log.stop()
    assert stored_ids(url) == ids(1, 2, 3)
    assert log.counts() == (3, 0, 5)


async def test_spool_of_an_older_version(broken: str, url: str, spool: Path) -> None:
    """Its traces have no kind: they are texts. Kinds and arguments of this version come through as they were."""
    before = Log(broken, spool)
    await before.log.start()
    before.record(1)
    await before.log.stop()
    row = orjson.loads(spool.read_bytes())
    call = row | {"id": "call", "kind": "tool", "arguments": '{"a":  1}'}
    old = {key: value for key, value in row.items() if key not in {"kind", "arguments"}}
    wrong = [row | {"id": "wrong", "kind": 5}, row | {"id": "wrong", "arguments": {}}]
    spool.write_bytes(b"\n".join(map(orjson.dumps, [old, call, *wrong])) + b"\n")
    log = Log(url, spool)
    await log.log.start()
    await until(lambda: spool.stat().st_size == 0)
    await log.log.stop()
    store = Store.open(url)
    found = {trace.id: (trace.kind, trace.arguments) for trace in store.traces()}
    store.close()
    assert found == {row["id"]: (AnswerKind.TEXT, None), "call": (AnswerKind.TOOL, '{"a":  1}')}
    assert log.counts() == (2, 0, 2)


async def test_appending_after_a_half_line(broken: str, url: str, spool: Path) -> None:
    """A half line at the end of the spool does not spoil the trace that is spooled after it."""
    spool.parent.mkdir()
    spool.write_bytes(b'{"id": "cut in the mid')
    before = Log(broken, spool)
    await before.log.start()
    before.record(1)
    await before.log.stop()
    log = Log(url, spool)
    await log.log.start()
    await until(lambda: spool.stat().st_size == 0)
    await log.log.stop()
    assert stored_ids(url) == ids(1)
    assert log.counts() == (1, 0, 1)


async def test_large_spool(broken: str, spool: Path, tmp_path: Path) -> None:
    """A spool of many megabytes, with lines of a megabyte among short ones, is stored whole and unchanged."""
    recorded = [
        replace(trace(number), input="\u00e9\ud800\x00" + "x" * (1_000_000 if number % 400 == 0 else 300))
        for number in range(6_000)
    ]
    before = Log(broken, spool)
    await before.log.start()
    for one in recorded:
        before.log.record(one)
    await before.log.stop()
    assert spool.stat().st_size > 16_000_000
    url = f"sqlite:///{tmp_path}/traces.db"
    log = Log(url, spool)
    await log.log.start()
    await until(lambda: spool.stat().st_size == 0)
    await log.log.stop()
    store = Store.open(url)
    assert [(one.id, len(one.input), one.input[:3]) for one in store.traces()] == [
        (one.id, len(one.input), "\u00e9\ufffd\ufffd") for one in recorded
    ]
    store.close()


async def test_shared_spool(broken: str, spool: Path, tmp_path: Path) -> None:
    """Gateways that share a spool, spooling and catching up at the same time, lose nothing between them."""
    logs = [Log(broken, spool) for _ in range(3)]
    for log in logs:
        await log.log.start()
    for step in range(60):
        for which, log in enumerate(logs):
            log.record(*range(which * 10_000 + step * 10, which * 10_000 + step * 10 + 10))
        await asyncio.sleep(0.005)
        if step == 20:
            await until(spool.exists)
            (tmp_path / "blocked").unlink()
    await until(lambda: all(log.waiting() == 0 for log in logs) and spool.stat().st_size == 0)
    for log in logs:
        await log.log.stop()
    assert stored_ids(broken) == sorted(ids(*(which * 10_000 + n for which in range(3) for n in range(600))))
    assert sum(log.counts()[2] for log in logs) == 0


async def test_trace_that_breaks_the_rules(url: str, spool: Path) -> None:
    """A trace the store would refuse is dropped and counted alone; its neighbours are stored."""
    log = Log(url, spool)
    await log.log.start()
    log.record(1)
    log.log.record(replace(trace(2), id=""))
    log.log.record(replace(trace(3), sampling_probability=0.0))
    log.record(4)
    await log.log.stop()
    assert stored_ids(url) == ids(1, 4)
    assert log.counts() == (2, 0, 2)


async def test_fault_in_the_writer(spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error nobody foresaw costs one batch, logged and counted; the next batch is written."""
    url = f"sqlite:///{tmp_path}/traces.db"
    append = Store.append

    def faulty(store: Store, traces: list[StoredTrace]) -> int:
        if any(one.id == trace(1).id for one in traces):
            raise RuntimeError("nobody foresaw this")
        return append(store, traces)

    monkeypatch.setattr(Store, "append", faulty)
    log = Log(url, spool)
    await log.log.start()
    log.record(1)
    await until(lambda: log.counts() == (0, 0, 1))
    log.record(2)
    await log.log.stop()
    assert stored_ids(url) == ids(2)
    assert log.metrics.registry.get_sample_value("tracer_internal_errors_total", {"where": "trace"}) == 1


RECORDER = """
import asyncio, itertools, sys
from pathlib import Path
from gateway.metrics import Metrics
from gateway.trace_log import TraceLog
from policies.types import StoredTrace

async def main(url, spool):
    metrics = Metrics()
    log = TraceLog(url, Path(spool), 100_000, metrics)
    await log.start()
    for number in itertools.count():
        log.record(StoredTrace(id=f"id-{number:05}", project="bank", input="text " * 50, teacher="x", ts=float(number)))
        if number % 10 == 0:
            print(int(metrics.registry.get_sample_value("tracer_traces_stored_total")), flush=True)
            await asyncio.sleep(0.001)

asyncio.run(main(*sys.argv[1:]))
"""


def test_kill_during_load(url: str, spool: Path) -> None:
    """After kill -9 every trace that was counted as stored is in the store, and none of them is a half one."""
    command = [sys.executable, "-c", RECORDER, url, str(spool)]
    worker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    acknowledged = 0
    while acknowledged < 1000:
        acknowledged = int(worker.stdout.readline())
    os.kill(worker.pid, signal.SIGKILL)
    for line in worker.stdout:
        acknowledged = int(line) if line.endswith("\n") else acknowledged
    worker.wait()
    worker.stdout.close()
    kept = stored_ids(url)
    assert kept == ids(*range(len(kept)))
    assert len(kept) >= acknowledged
    store = Store.open(url)
    assert {one.input for one in store.traces()} == {"text " * 50}
    store.close()
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
