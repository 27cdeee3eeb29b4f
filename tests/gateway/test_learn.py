"""Traces while the store is away or slow: the client never notices."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from policies.store import Store
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings


def _ask(gateway: ThreadedGateway, text: str) -> int:
    body = {"model": "tracer/new", "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{gateway.base_url}/chat/completions", json=body).status_code


def _eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def _gateway(folder: Path, teacher: ScriptedTeacher, **store: object) -> ThreadedGateway:
    tree = {
        "projects": {"new": {"policy": str(folder / "absent"), "teacher": "m"}},
        "store": {"url": f"sqlite:///{folder}/store/t.db", "spool": str(folder / "spool.jsonl")} | store,
    }
    return ThreadedGateway(make_settings(folder, tree, teacher.url))


def test_without_its_store_a_gateway_serves_and_spools(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """`store.spool` keeps the traces; the next gateway, with a store again, takes them up."""
    (tmp_path / "store").write_text("a file where the folder should be")
    with _gateway(tmp_path, teacher) as gateway:
        assert [_ask(gateway, f"text {i}") for i in range(5)] == [200] * 5
        assert httpx.get(f"{gateway.url}/readyz").status_code == 200
        _eventually(lambda: gateway.metric("tracer_traces_spooled_total") == 5)
    assert len((tmp_path / "spool.jsonl").read_text().splitlines()) == 5
    (tmp_path / "store").unlink()
    with _gateway(tmp_path, teacher) as gateway:
        _eventually(lambda: gateway.metric("tracer_traces_stored_total") == 5)
    store = Store.open(f"sqlite:///{tmp_path}/store/t.db")
    assert sorted(trace.input for trace in store.traces("new")) == [f"text {i}" for i in range(5)]
    store.close()


def test_a_store_that_hangs_holds_up_no_call(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """`store.queue_size` bounds what waits; the rest is dropped and counted, the waiting is stored in the end."""
    with _gateway(tmp_path, teacher, queue_size=2) as gateway:
        assert _ask(gateway, "first") == 200
        _eventually(lambda: gateway.metric("tracer_traces_stored_total") == 1)
        other = sqlite3.connect(tmp_path / "store" / "t.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        assert [_ask(gateway, f"text {i}") for i in range(5)] == [200] * 5
        assert gateway.metric("tracer_trace_queue") == 2
        assert gateway.metric("tracer_traces_dropped_total") == 3
        other.execute("ROLLBACK")
        other.close()
        _eventually(lambda: gateway.metric("tracer_traces_stored_total") == 3)
