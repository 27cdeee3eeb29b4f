"""What takes long is scored by threads that start at once, wait together, and turn away what they cannot take."""

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from gateway.decide import LONG_CHARS, Decider, Decision
from gateway.metrics import Metrics
from gateway.registry import Serving
from gateway.settings import ServerSettings
from policies.encoders import TransformerEncoder
from policies.features import TextEncoder
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Reason
from tests.encoder_maker import make_encoder
from tests.scripted_embeddings import ScriptedEmbeddings
from tests.serving import GatewayProcess, ThreadedGateway, make_settings
from tests.traces_maker import make_traces

ENDPOINT_THREADS = 4


# A model in the process ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(cascade_folder: Path) -> Policy:
    """A certified cascade."""
    return Policy.load(cascade_folder)


class Encoding:
    """Every text that an encoder is given, in order, and how long each takes: `hold` makes them wait for `release`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        self.texts: list[str] = []
        self.seconds = seconds
        self._open = threading.Event()
        self._open.set()
        encode = TransformerEncoder.encode

        def watched(encoder: TransformerEncoder, text: str) -> Any:
            self.texts.append(text)
            assert self._open.wait(20)
            time.sleep(self.seconds)
            return encode(encoder, text)

        monkeypatch.setattr(TransformerEncoder, "encode", watched)

    def hold(self) -> None:
        """Let every encoding hang."""
        self._open.clear()

    def release(self) -> None:
        """Let them go on."""
        self._open.set()


def _decider(metrics: Metrics | None = None, **settings: Any) -> Decider:
    return Decider(ServerSettings(**settings), metrics or Metrics())


def _undecided(policy: Policy) -> list[str]:
    """Texts that need the encoder."""
    return [trace.input for trace in make_traces(400, seed=5) if policy.decide_quickly(trace.input) is None]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens on other threads
            await asyncio.sleep(0.005)


def _ask(decider: Decider, policy: Policy, texts: Sequence[str]) -> "list[asyncio.Task[Decision]]":
    return [asyncio.create_task(decider.decide(Serving(policy), text)) for text in texts]


def test_a_call_starts_at_once_on_an_idle_thread(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """No window to wait for others in: as many calls as there are threads are begun together."""
    encoding = Encoding(monkeypatch)
    encoding.hold()
    texts = _undecided(policy)[:3]

    async def play() -> None:
        decider = _decider(scoring_threads=2, scoring_wait=5)
        tasks = _ask(decider, policy, texts)
        await _until(lambda: len(encoding.texts) == 2)
        await asyncio.sleep(0.05)
        assert len(encoding.texts) == 2
        encoding.release()
        assert [(await task).reason for task in tasks] == [policy.decide(text).reason for text in texts]
        decider.close()

    asyncio.run(play())


def test_more_than_can_be_scored_in_time_is_deferred_at_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bounded by the time it is expected to wait; afterwards everything is answered again."""
    Encoding(monkeypatch, seconds=0.2)
    texts = _undecided(policy)

    async def play() -> None:
        decider = _decider(scoring_threads=1, scoring_wait=2, scoring_timeout=10)
        await decider.decide(Serving(policy), texts[0])
        tasks = _ask(decider, policy, texts)
        await asyncio.sleep(0.01)
        refused = [task.result().reason for task in tasks if task.done()]
        assert set(refused) == {Reason.BUSY}
        # One is with the thread and five wait, 200 ms each: half of what they may wait. With room for a busy machine.
        assert 2 <= len(tasks) - len(refused) <= 8
        reasons = [(await task).reason for task in tasks]
        assert reasons.count(Reason.BUSY) == len(refused)
        after = await decider.decide(Serving(policy), texts[0])
        assert after.reason is policy.decide(texts[0]).reason
        decider.close()

    asyncio.run(play())


def test_a_call_that_waits_too_long_is_dropped_and_costs_nothing(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind an encoder that hangs a call is deferred when its wait is over, and never encoded."""
    encoding = Encoding(monkeypatch)
    first, second, third = _undecided(policy)[:3]

    async def play() -> None:
        decider = _decider(scoring_threads=1, scoring_wait=0.2, scoring_timeout=0.5)
        encoding.hold()
        hung, waiting = _ask(decider, policy, [first, second])
        await asyncio.sleep(0.35)
        assert waiting.done()
        assert not hung.done()
        assert (await waiting).reason is (await hung).reason is Reason.BUSY
        # The thread still hangs: nobody waits for it in vain.
        started = time.perf_counter()
        assert (await decider.decide(Serving(policy), third)).reason is Reason.BUSY
        assert time.perf_counter() - started < 0.1
        encoding.release()
        await asyncio.sleep(0.1)
        assert (await decider.decide(Serving(policy), third)).reason is policy.decide(third).reason
        assert second not in encoding.texts
        decider.close()

    asyncio.run(play())


def test_a_cancelled_call_leaves_the_queue(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is never encoded, and it counts for nobody's wait."""
    encoding = Encoding(monkeypatch)
    metrics = Metrics()
    texts = _undecided(policy)[:4]

    async def play() -> None:
        decider = _decider(metrics, scoring_threads=1, scoring_wait=5)
        encoding.hold()
        tasks = _ask(decider, policy, texts)
        await _until(lambda: len(encoding.texts) == 1)
        assert metrics.registry.get_sample_value("tracer_scoring_pending") == 4
        for task in tasks[1:3]:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert metrics.registry.get_sample_value("tracer_scoring_pending") == 2
        encoding.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert encoding.texts == [texts[0], texts[3]]
        decider.close()

    asyncio.run(play())


def test_a_project_whose_encoder_hangs_delays_no_other(
    cascade_folder: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each policy has threads of its own."""
    other = Policy.load(cascade_folder)
    assert policy._encoder is not None
    stuck = threading.Event()
    slow, encode = policy._encoder, TransformerEncoder.encode

    def watched(encoder: TransformerEncoder, text: str) -> Any:
        if encoder is slow:
            assert stuck.wait(20)
        return encode(encoder, text)

    monkeypatch.setattr(TransformerEncoder, "encode", watched)
    texts = _undecided(other)

    async def play() -> None:
        decider = _decider(scoring_wait=5, scoring_timeout=5)
        held = _ask(decider, policy, texts[:20])
        await asyncio.sleep(0.05)
        for text in texts[:20]:
            found = await asyncio.wait_for(decider.decide(Serving(other), text), 2)
            assert found.reason is other.decide(text).reason
        assert not any(task.done() for task in held)
        stuck.set()
        await asyncio.gather(*held)
        decider.close()

    asyncio.run(play())


def test_long_texts_leave_the_event_loop(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a policy without an encoder, too: tokenising them alone takes milliseconds."""
    policy = Policy.load(policy_folder)
    threads: dict[int, int] = {}
    encode = TextEncoder.encode

    def watched(encoder: TextEncoder, text: str) -> list[int]:
        threads[len(text)] = threading.get_ident()
        return encode(encoder, text)

    monkeypatch.setattr(TextEncoder, "encode", watched)
    short, long = "lost my card ", "lost my card " * (LONG_CHARS // 10)

    async def play() -> list[Decision]:
        decider = _decider()
        found = [await decider.decide(Serving(policy), text) for text in (short, long)]
        decider.close()
        return found

    found = asyncio.run(play())
    assert threads[len(short)] == threading.get_ident() != threads[len(long)]
    assert [decision.reason for decision in found] == [policy.decide(text).reason for text in (short, long)]


def test_the_threads_of_a_policy_end_with_it(cascade_folder: Path) -> None:
    """A policy that has been replaced keeps nothing."""
    policy = Policy.load(cascade_folder)
    text, before = _undecided(policy)[0], set(threading.enumerate())
    decider = _decider()
    asyncio.run(decider.decide(Serving(policy), text))
    hired = set(threading.enumerate()) - before
    assert hired
    del policy
    gc.collect()
    for thread in hired:
        thread.join(5)
    assert not any(thread.is_alive() for thread in hired)


# An endpoint ---------------------------------------------------------------------------------------------------------


class Endpoint:
    """Embeddings like the tiny encoder's over a real socket. `hold` keeps requests until `release`."""

    def __init__(self, encoder: TransformerEncoder) -> None:
        self.server = ScriptedEmbeddings(vector=lambda text: [float(x) for x in encoder.encode(text)])
        self._open = threading.Event()
        self._open.set()

    @property
    def batches(self) -> list[list[str]]:
        """The texts of each request."""
        return [request["input"] for request in self.server.requests]

    def hold(self, requests: int) -> None:
        """Let so many requests hang."""
        self._open.clear()
        self.server.scripts = [self._held] * requests

    def release(self) -> None:
        """Let them go on; those that still come are answered at once."""
        self._open.set()

    def _held(self, texts: list[str]) -> tuple[int, Any]:
        self._open.wait(20)
        data = [{"index": i, "embedding": self.server.vector(text)} for i, text in enumerate(texts)]
        return 200, {"data": data}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Answers until the module's tests are over."""
    made = Endpoint(TransformerEncoder.from_folder(make_encoder(tmp_path_factory.mktemp("encoder"))))
    with made.server:
        yield made
        made.release()


@pytest.fixture(scope="module")
def remote_folder(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified cascade whose encoder is the endpoint."""
    folder = tmp_path_factory.mktemp("remote") / "policy"
    features = f"lexical,static,endpoint:{endpoint.server.url}#tiny"
    fit_policy(make_traces(1_500), folder, FitConfig(0.85, features=features))
    return folder


@pytest.fixture
def remote(remote_folder: Path, endpoint: Endpoint) -> Policy:
    """The same, loaded, before anything has been asked."""
    loaded = Policy.load(remote_folder)
    endpoint.release()
    endpoint.server.scripts.clear()
    endpoint.server.requests.clear()
    return loaded


async def _occupy(
    endpoint: Endpoint, decider: Decider, policy: Policy, texts: Sequence[str]
) -> "list[asyncio.Task[Decision]]":
    """Each of a policy's threads waits for an answer, to one of the first texts."""
    endpoint.hold(ENDPOINT_THREADS)
    tasks = []
    for text in texts[:ENDPOINT_THREADS]:
        asked = len(endpoint.batches)
        tasks += _ask(decider, policy, [text])
        while len(endpoint.batches) == asked:  # noqa: ASYNC110 - what is waited for happens on other threads
            await asyncio.sleep(0.005)
    return tasks


def test_calls_that_wait_for_an_endpoint_are_asked_for_together(remote: Policy, endpoint: Endpoint) -> None:
    """A lone call is one request of one text; what comes while all threads wait is one more request, or few."""
    texts = _undecided(remote)[:40]
    singles = [remote.decide(text) for text in texts]
    endpoint.server.requests.clear()
    metrics = Metrics()

    async def play() -> list[Decision]:
        decider = _decider(metrics, scoring_wait=10, scoring_timeout=10)
        tasks = await _occupy(endpoint, decider, remote, texts)
        tasks += _ask(decider, remote, texts[ENDPOINT_THREADS:])
        await asyncio.sleep(0.05)
        assert [len(batch) for batch in endpoint.batches] == [1] * ENDPOINT_THREADS
        endpoint.release()
        found = [await task for task in tasks]
        decider.close()
        return found

    found = asyncio.run(play())
    assert [(d.label, d.reason, d.stage) for d in found] == [(s.label, s.reason, s.stage) for s in singles]
    assert len(endpoint.batches) <= 2 * ENDPOINT_THREADS
    assert sorted(text for batch in endpoint.batches for text in batch) == sorted(texts)
    assert metrics.registry.get_sample_value("tracer_scoring_batch_sum") == len(texts)
    assert metrics.registry.get_sample_value("tracer_scoring_batch_count") == len(endpoint.batches)
    assert metrics.registry.get_sample_value("tracer_scoring_wait_seconds_count") == len(texts)


def test_a_text_that_an_endpoint_refuses_fails_alone(remote: Policy, endpoint: Endpoint) -> None:
    """Those that were asked for beside it get their decisions; what fails is deferred and counted."""
    texts = _undecided(remote)[:12]
    bad = texts[-1]
    singles = {text: remote.decide(text) for text in texts}
    metrics = Metrics()

    def picky(asked: list[str]) -> tuple[int, Any]:
        if bad in asked:
            return 400, {"error": {"message": "too long"}}
        return 200, {"data": [{"index": i, "embedding": endpoint.server.vector(text)} for i, text in enumerate(asked)]}

    async def play() -> list[Decision]:
        decider = _decider(metrics, scoring_wait=10, scoring_timeout=10)
        tasks = await _occupy(endpoint, decider, remote, texts)
        tasks += _ask(decider, remote, texts[ENDPOINT_THREADS:])
        await asyncio.sleep(0)
        endpoint.server.scripts = [picky] * 100
        endpoint.release()
        found = [await task for task in tasks]
        decider.close()
        return found

    found = asyncio.run(play())
    assert [d.reason for d in found[:-1]] == [singles[text].reason for text in texts[:-1]]
    assert found[-1].reason is Reason.ERROR
    assert metrics.registry.get_sample_value("tracer_internal_errors_total", {"where": "decide"}) == 1


def test_an_endpoint_that_is_away_is_not_asked_text_by_text(remote: Policy, endpoint: Endpoint) -> None:
    """All of a request are deferred with it: asking for each again would take as long once more."""
    texts = _undecided(remote)[:30]

    async def play() -> list[Reason | None]:
        decider = _decider(scoring_wait=10, scoring_timeout=10)
        endpoint.server.scripts = [lambda _: (503, b"away")] * 1_000
        reasons = [(await task).reason for task in _ask(decider, remote, texts)]
        decider.close()
        return reasons

    assert set(asyncio.run(play())) == {Reason.ERROR}
    # Three tries of a request.
    assert len(endpoint.batches) <= 3 * 2 * ENDPOINT_THREADS


# Over the wire -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gateway(tmp_path: Path, cascade_folder: Path, policy_folder: Path) -> Iterator[ThreadedGateway]:
    """A decision server with a cascade and a policy without an encoder; one thread each."""
    tree = {
        "server": {"scoring_threads": 1, "scoring_wait": 5, "scoring_timeout": 10},
        "projects": {"cascade": {"policy": str(cascade_folder)}, "cheap": {"policy": str(policy_folder)}},
    }
    with ThreadedGateway(make_settings(tmp_path, tree)) as running:
        yield running


def _predict(gateway: ThreadedGateway, project: str, **fields: Any) -> dict[str, Any]:
    path = "predict_batch" if "inputs" in fields else "predict"
    answer = httpx.post(f"{gateway.url}/{path}", json=fields | {"project": project}, timeout=60)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def test_a_client_that_leaves_takes_its_call_along(
    gateway: ThreadedGateway, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it asked for leaves the queue, and is never encoded."""
    encoding = Encoding(monkeypatch)
    first, second, third = _undecided(policy)[:3]
    encoding.hold()
    asking = [threading.Thread(target=_predict, args=(gateway, "cascade"), kwargs={"input": first})]
    asking[0].start()
    _eventually(lambda: encoding.texts == [first])
    body = orjson.dumps({"input": second, "project": "cascade"})
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as client:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        _eventually(lambda: gateway.metric("tracer_scoring_pending") == 2)
    _eventually(lambda: gateway.metric("tracer_disconnects_total") == 1)
    assert gateway.metric("tracer_scoring_pending") == 1
    asking.append(threading.Thread(target=_predict, args=(gateway, "cascade"), kwargs={"input": third}))
    asking[1].start()
    _eventually(lambda: gateway.metric("tracer_scoring_pending") == 2)
    encoding.release()
    for thread in asking:
        thread.join(10)
    assert encoding.texts == [first, third]


@pytest.mark.parametrize("project", ["cascade", "cheap"])
def test_a_large_batch_lets_other_calls_through(gateway: ThreadedGateway, policy: Policy, project: str) -> None:
    """Ten thousand rows hold up neither event loop nor threads, and are decided as single calls are."""
    texts = [trace.input for trace in make_traces(1_000, seed=5)]
    texts[7] = ""
    found: dict[str, Any] = {}

    def ask() -> None:
        found.update(_predict(gateway, project, inputs=texts * 10))

    batch = threading.Thread(target=ask)
    batch.start()
    _eventually(lambda: gateway.metric("tracer_scoring_pending") > 0)
    answers = 0
    while batch.is_alive():
        _predict(gateway, project, input=_undecided_text(policy))
        answers += batch.is_alive()
    batch.join()
    assert answers >= 5
    singles = [_predict(gateway, project, input=text) for text in texts[:50]]
    assert found["labels"][:50] == [single["label"] for single in singles]
    assert found["decisions"][:50] == [single["decision"] for single in singles]
    assert found["labels"][:1_000] == found["labels"][9_000:]
    counted = sum(
        sample.value
        for family in gateway.services.metrics.requests.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    )
    assert counted == 10_000 + answers + 51


def test_a_batch_of_an_endpoints_policy_is_asked_for_in_few_requests(
    tmp_path: Path, remote: Policy, remote_folder: Path, endpoint: Endpoint
) -> None:
    """And decided as single calls are."""
    texts = [trace.input for trace in make_traces(300, seed=5)]
    expected = [remote.decide(text).label for text in texts]
    endpoint.server.requests.clear()
    with ThreadedGateway(make_settings(tmp_path, {"projects": {"a": {"policy": str(remote_folder)}}})) as gateway:
        found = _predict(gateway, "a", inputs=texts)
    assert found["labels"] == expected
    assert len(endpoint.batches) < len(_undecided(remote)) / 2


def test_an_encoder_that_hangs_does_not_keep_the_process(
    tmp_path: Path, remote: Policy, remote_folder: Path, endpoint: Endpoint
) -> None:
    """The call is deferred, and the gateway ends when it is told to, whatever its threads wait for."""
    endpoint.hold(2)  # the probe of the load, which is given up, and the call
    with GatewayProcess(tmp_path, remote_folder) as gateway:
        answer = httpx.post(f"{gateway.url}/predict", json={"input": _undecided(remote)[0]}, timeout=10)
        assert answer.headers["x-tracer-reason"] == "busy"
        started = time.perf_counter()
        assert gateway.terminate() == 0
        assert time.perf_counter() - started < 5
    endpoint.release()


def _undecided_text(policy: Policy) -> str:
    return next(t.input for t in make_traces(400, seed=5) if policy.decide_quickly(t.input) is None)


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_decisions_that_are_merged_are_those_of_single_calls(policy: Policy) -> None:
    """`Policy.decide_encoded` is `decide` for what `decide_quickly` leaves open, whatever comes beside it."""
    texts = [*_undecided(policy)[:20], "", "lost " * 20_000]
    merged = policy.decide_encoded([(text, None) for text in texts])
    singles = [policy.decide(text) for text in texts]
    assert merged == singles
    assert np.isfinite([decision.accept_score for decision in merged]).all()
    assert policy.decide_encoded([]) == []
