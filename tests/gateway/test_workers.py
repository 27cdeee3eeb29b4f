"""Several workers on one port, as processes over real sockets: they share the calls, count together, come and go."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from policies.store import Store
from policies.types import StoredTrace
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ROOT, GatewayProcess


class Workers(GatewayProcess):
    """Two workers in front of a teacher."""

    def __init__(self, folder: Path, teacher: ScriptedTeacher, policy: Path | None = None, store: str = "") -> None:
        self.store = store or f"sqlite:///{folder}/traces.db"
        lines = [
            "server: {workers: 2, shutdown_timeout: 20}",
            f"store: {{url: '{self.store}', spool: '{folder}/spool.jsonl'}}",
            f"upstreams: {{t: {{base_url: '{teacher.url}'}}}}",
            "default_upstream: t",
            f"projects: {{bank: {{policy: '{policy or folder / 'absent'}', teacher: m, promotion: immediate,",
            "  audit: {rate: 0}}}",
        ]
        (folder / "c.yaml").write_text("\n".join(lines))
        super().__init__(folder, "--config", "c.yaml")

    def pids(self) -> dict[int, int]:
        """The process of each worker, the newest where there were several."""
        started = re.findall(r"worker (\d) uvicorn.error: Started server process \[(\d+)\]", self.log())
        return {int(worker): int(pid) for worker, pid in started}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, asked of whichever worker answers."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def ask(self, text: str) -> str | None:
        """The label of a call on a connection of its own."""
        answer = httpx.post(f"{self.base_url}/chat/completions", json=body(text), timeout=30)
        label: str | None = answer.raise_for_status().json()["choices"][0]["message"]["content"]
        return label

    def metrics_folder(self) -> Path:
        """Where its workers count."""
        maps = Path(f"/proc/{self.pids()[0]}/maps").read_text()
        found = re.search(r"\S*/tracer-metrics-[^/]+", maps)
        assert found is not None
        return Path(found[0])

    def stored(self) -> list[StoredTrace]:
        """The traces there are."""
        with contextlib.closing(Store.open(self.store)) as store:
            return list(store.traces(training_only=False))


def body(text: str, **more: object) -> dict[str, object]:
    return {"model": "tracer/bank", "messages": [{"role": "user", "content": text}], **more}


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def is_alive(connection: socket.socket) -> bool:
    """Whether a kept connection still gets an answer."""
    connection.settimeout(10)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    received = b""
    while not received.endswith(b'{"status":"ok"}'):
        piece = connection.recv(65536)
        if not piece:
            return False
        received += piece
    return received.startswith(b"HTTP/1.1 200 OK")


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


class InFlight:
    """Calls that wait at the teacher, each on a connection of its own; streamed and not."""

    def __init__(self, gateway: Workers, teacher: ScriptedTeacher, count: int) -> None:
        self._gateway, self._teacher, self._count = gateway, teacher, count

    async def __aenter__(self) -> "InFlight":
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(timeout=60, limits=limits)
        before = len(self._teacher.calls)
        self.calls = [asyncio.create_task(self._ask(number)) for number in range(self._count)]
        await asyncio.to_thread(until, lambda: len(self._teacher.calls) - before == self._count)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self.calls, return_exceptions=True)
        await self._client.aclose()

    async def _ask(self, number: int) -> bool:
        """Whether the answer came whole."""
        streamed = bool(number % 2)
        headers = {"x-script": "slow_stream" if streamed else "hang"}
        asked = body(f"in flight {number}", stream=streamed)
        answer = await self._client.post(f"{self._gateway.base_url}/chat/completions", json=asked, headers=headers)
        return answer.status_code == 200 and (answer.text.endswith("data: [DONE]\n\n") or not streamed)


@pytest.fixture
def label_teacher() -> Iterator[ScriptedTeacher]:
    with ScriptedTeacher(label_of=lambda text: f"label of {text}") as running:
        yield running


@pytest.fixture
def gateway(tmp_path: Path, label_teacher: ScriptedTeacher) -> Iterator[Workers]:
    with Workers(tmp_path, label_teacher) as running:
        yield running


def test_workers_share_the_connections_and_add_up_what_they_count(
    tmp_path: Path, teacher: ScriptedTeacher, policy_folder: Path, handled_text: str, deferred_text: str
) -> None:
    """One banner when both serve; every worker has its part, and either of them gives the sum of both, exactly."""
    with Workers(tmp_path, teacher, policy_folder) as gateway:
        assert gateway.banner.splitlines()[-2:] == ["  workers: 2", "ready"]
        assert gateway.banner.count("tracer gateway on") == 1
        idle = {worker: gateway.metric("process_open_fds", worker=worker) for worker in "01"}
        with contextlib.ExitStack() as opened:
            for _ in range(40):
                opened.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
            for worker in "01":
                until(lambda worker=worker: gateway.metric("process_open_fds", worker=worker) >= idle[worker] + 5)  # type: ignore[misc]
        for _ in range(30):
            gateway.ask(handled_text)
        for _ in range(20):
            gateway.ask(deferred_text)
        until(lambda: gateway.metric("tracer_request_seconds_count") == 50)
        until(lambda: gateway.metric("tracer_traces_stored_total") == 20)
        for _ in range(10):
            assert gateway.metric("tracer_requests_total", lane="surrogate") == 30
            assert gateway.metric("tracer_requests_total", lane="teacher", reason="uncertain") == 20
            # Each worker decides once on each of the two texts, and remembers what it has said.
            assert gateway.metric("tracer_decision_seconds_count") == 4
            assert gateway.metric("tracer_decision_seconds_bucket", le="+Inf") == 4
            assert gateway.metric("tracer_policy_info", project="bank") == 1
            assert gateway.metric("tracer_policy_certified", project="bank") == 1
            assert gateway.metric("tracer_policy_loads_total") == 2
            assert gateway.metric("tracer_workers") == 2
            assert httpx.get(f"{gateway.url}/health").json()["workers"] == 2
        assert gateway.terminate() == 0
        assert len(gateway.stored()) == 20


def test_a_killed_worker_is_replaced_and_nothing_that_was_counted_is_lost(
    gateway: Workers, label_teacher: ScriptedTeacher
) -> None:
    """The other's calls go on, new ones are answered meanwhile and go on too, totals stay, what was stored stays."""
    folder, killed = gateway.metrics_folder(), gateway.pids()[0]
    files = sorted(path.name for path in folder.iterdir())
    for number in range(25):
        gateway.ask(f"before {number}")
    until(lambda: gateway.metric("tracer_traces_stored_total") == 25)

    async def kill() -> list[bool | BaseException]:
        async with InFlight(gateway, label_teacher, 16) as waiting:
            await asyncio.to_thread(until, lambda: gateway.metric("tracer_forwards") == 16)
            os.kill(killed, signal.SIGKILL)
            done, _ = await asyncio.wait(waiting.calls, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert done
            for number in range(25):
                assert await asyncio.to_thread(gateway.ask, f"during {number}") == f"label of during {number}"
            with contextlib.ExitStack() as opened:
                kept = [opened.enter_context(socket.create_connection(("127.0.0.1", gateway.port))) for _ in range(8)]
                assert all(map(is_alive, kept))
                until(lambda: gateway.metric("tracer_workers") == 2)
                await asyncio.sleep(0.5)
                assert all(map(is_alive, kept))
            label_teacher.released.set()
            return await asyncio.gather(*waiting.calls, return_exceptions=True)

    answers = asyncio.run(kill())
    lost = [answer for answer in answers if answer is not True]
    assert 1 <= len(lost) <= 15
    assert all(isinstance(answer, httpx.TransportError) for answer in lost)
    for number in range(25):
        gateway.ask(f"after {number}")
    until(lambda: gateway.metric("tracer_traces_stored_total") == 75 + 16 - len(lost))
    # Calls that were killed in flight had been counted when they were forwarded.
    assert gateway.metric("tracer_requests_total") == 75 + 16
    assert gateway.metric("tracer_forwards") == 0
    assert gateway.metric("tracer_worker_restarts_total") == 1
    assert sorted(path.name for path in folder.iterdir()) == files
    assert "worker 0 ended by signal 9; another one starts in 0 seconds" in gateway.log()
    os.kill(gateway.pids()[0], signal.SIGKILL)
    until(lambda: "another one starts in 0.5 seconds" in gateway.log())
    assert gateway.metric("tracer_requests_total") == 75 + 16
    assert gateway.terminate() == 0
    inputs = Counter(trace.input for trace in gateway.stored())
    assert len(inputs) == 75 + 16 - len(lost)
    assert set(inputs.values()) == {1}
    assert not folder.exists()


def test_a_worker_that_is_told_to_leave_finishes_its_calls_and_is_replaced(
    gateway: Workers, label_teacher: ScriptedTeacher
) -> None:
    """SIGTERM to a worker restarts it without a lost call, while the other takes the new ones."""
    left = gateway.pids()[1]

    async def leave() -> list[bool]:
        async with InFlight(gateway, label_teacher, 16) as waiting:
            os.kill(left, signal.SIGTERM)
            await asyncio.to_thread(until, lambda: "worker 1 uvicorn.error: Waiting for connections" in gateway.log())
            for number in range(12):
                await asyncio.to_thread(gateway.ask, f"meanwhile {number}")
            assert is_running(left)
            label_teacher.released.set()
            return await asyncio.gather(*waiting.calls)

    assert asyncio.run(leave()) == [True] * 16
    until(lambda: gateway.metric("tracer_worker_restarts_total") == 1)
    assert gateway.terminate() == 0
    assert len(gateway.stored()) == 28


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_calls_of_every_worker_finish(
    gateway: Workers, label_teacher: ScriptedTeacher, number: signal.Signals
) -> None:
    """Streamed or not, and however often SIGTERM comes; their traces are stored, exit code 0, no files stay."""
    folder, pids = gateway.metrics_folder(), gateway.pids()

    async def drain() -> list[bool]:
        async with InFlight(gateway, label_teacher, 16) as waiting:
            gateway.process.send_signal(number)
            await asyncio.to_thread(until, lambda: refuses(gateway.port))
            gateway.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert not any(call.done() for call in waiting.calls)
            label_teacher.released.set()
            return await asyncio.gather(*waiting.calls)

    assert asyncio.run(drain()) == [True] * 16
    assert gateway.process.wait(20) == 0
    assert not any(map(is_running, pids.values()))
    assert Counter(trace.input for trace in gateway.stored()) == {f"in flight {number}": 1 for number in range(16)}
    assert not folder.exists()


def test_workers_leave_when_their_supervisor_is_killed(gateway: Workers, label_teacher: ScriptedTeacher) -> None:
    """They notice, finish their calls, store the traces, free the port and leave no files."""
    folder, pids = gateway.metrics_folder(), gateway.pids()

    async def kill() -> list[bool]:
        async with InFlight(gateway, label_teacher, 8) as waiting:
            gateway.process.kill()
            await asyncio.to_thread(until, lambda: refuses(gateway.port))
            label_teacher.released.set()
            return await asyncio.gather(*waiting.calls)

    assert asyncio.run(kill()) == [True] * 8
    until(lambda: not any(map(is_running, pids.values())))
    assert len(gateway.stored()) == 8
    assert not folder.exists()


def test_ctrl_c_twice_waits_for_nobody(gateway: Workers, label_teacher: ScriptedTeacher) -> None:
    """As with one worker."""

    async def interrupt() -> int:
        async with InFlight(gateway, label_teacher, 4):
            gateway.process.send_signal(signal.SIGINT)
            await asyncio.to_thread(until, lambda: refuses(gateway.port))
            gateway.process.send_signal(signal.SIGINT)
            return await asyncio.to_thread(gateway.process.wait, 10)

    assert asyncio.run(interrupt()) == 0
    assert not any(map(is_running, gateway.pids().values()))


def test_workers_share_a_spool_and_store_every_trace_once(tmp_path: Path, label_teacher: ScriptedTeacher) -> None:
    """What they spooled while the store was away is stored when it is back, also for one that was killed."""
    (tmp_path / "blocked").touch()
    with Workers(tmp_path, label_teacher, store=f"sqlite:///{tmp_path}/blocked/traces.db") as gateway:
        for number in range(12):
            gateway.ask(f"text {number}")
        until(lambda: gateway.metric("tracer_traces_spooled_total") == 12)
        os.kill(gateway.pids()[0], signal.SIGKILL)
        (tmp_path / "blocked").unlink()
        until(lambda: gateway.metric("tracer_traces_stored_total") == 12)
        until(lambda: (tmp_path / "spool.jsonl").stat().st_size == 0)
        assert gateway.terminate() == 0
        assert Counter(trace.input for trace in gateway.stored()) == {f"text {number}": 1 for number in range(12)}


def _serve(folder: Path, *arguments: str | Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracer", "serve", *map(str, arguments)]
    environ = {"PYTHONPATH": f"{path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_port_that_other_workers_have_is_an_error(gateway: Workers, tmp_path: Path) -> None:
    """Two gateways never share a port unnoticed, though workers of one do."""
    for workers in ("1", "2"):
        done = _serve(
            tmp_path, "--upstream", "http://127.0.0.1:9/v1", "--port", str(gateway.port), "--workers", workers
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"cannot listen on 127.0.0.1:{gateway.port}: Address already in use")


def test_a_mistake_in_the_settings_is_told_once(tmp_path: Path) -> None:
    """By the command, before there is any worker: exit code 1 and the key."""
    (tmp_path / "few.yaml").write_text("server: {max_concurrency: 2, workers: 3}")
    done = _serve(tmp_path, "--config", "few.yaml")
    assert done.returncode == 1
    assert done.stderr.startswith("server.max_concurrency: 2 is divided among server.workers (3)")
    done = _serve(tmp_path, "--upstream", "http://127.0.0.1:9/v1", "--api-key-env", "NOPE", "--workers", "2")
    assert done.returncode == 1
    assert done.stderr == "upstreams.default.api_key_env: the environment has no NOPE\n"


def test_a_worker_that_cannot_start_ends_the_command(tmp_path: Path) -> None:
    """With its own exit code and message, and without trying again."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "onnxruntime.py").write_text("raise ImportError('this machine has none')")
    done = _serve(tmp_path, "--upstream", "http://127.0.0.1:9/v1", "--workers", "2", path=tmp_path / "broken")
    assert done.returncode == 1
    assert "this machine has none" in done.stderr
    assert re.search(r"worker \d ended with exit code 1 before it could serve", done.stderr)
    assert "ready" not in done.stdout
