"""Answers that an upstream may send, well made and badly: relayed to the byte, and read without a fault."""

import gzip
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from policies.store import Store
from policies.types import AnswerKind
from tests.fidelity.fuzzing import open_files
from tests.fidelity.world import FORMS, STRANGE
from tests.openai_answers import DONE, Said, chat_chunks
from tests.raw_upstream import Connection, RawUpstream
from tests.serving import ThreadedGateway, make_settings

ANSWERS = 300
_ASKED = {**FORMS["text"].chat(STRANGE), "stream": True}
_LABEL = "zurück 😀 " + "é" * 40
_STREAM = b"".join(chat_chunks(Said(_LABEL), _ASKED)) + DONE


@dataclass(frozen=True)
class Sent:
    """An answer in pieces, as they leave the upstream's socket: `body` is what they hold, `whole` whether all of it."""

    pieces: tuple[bytes, ...]
    body: bytes
    whole: bool


class Upstream:
    """A raw upstream that answers every request with `answer`."""

    def __init__(self) -> None:
        self.answer = Sent((), b"", True)
        self.raw = RawUpstream(self._handle)

    async def _handle(self, _: RawUpstream, connection: Connection) -> None:
        if await connection.request():
            for piece in self.answer.pieces:
                await connection.write(piece)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The upstream."""
    made = Upstream()
    with made.raw:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, policies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedGateway]:
    """A gateway before it, with a project whose answers are copied and read. Its breaker is off."""
    form = FORMS["text"]
    tree = {
        "upstreams": {"raw": {"base_url": upstream.raw.url, "breaker_failures": 0}},
        "default_upstream": "raw",
        "projects": {"text": {"policy": str(policies / "nothing"), "match": {"system_prompt": form.prompt}}},
    }
    with ThreadedGateway(make_settings(tmp_path_factory.mktemp("odd"), tree)) as running:
        yield running


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """A client that takes what comes."""
    with httpx.Client(timeout=5) as client:
        yield client


def _spelt(stream: bytes, newline: bytes, comments: bool, mark: bool, tight: bool) -> bytes:
    """The same events in another spelling."""
    if comments:
        stream = stream.replace(b"\n\n", b"\n\n: keep-alive\n\nevent: x\nid: 1\nretry: 5\n")
    if tight:
        stream = stream.replace(b"data: ", b"data:")
    return (b"\xef\xbb\xbf" if mark else b"") + stream.replace(b"\n", newline)


def _packed(body: bytes, cuts: list[int], framing: str, compressed: bool, lost: int) -> Sent:
    """An answer on its way: cut into pieces wherever, framed, and with its last bytes lost."""
    body = gzip.compress(body) if compressed else body
    points = sorted({0, len(body), *(cut % len(body) for cut in cuts)})
    parts = [body[start:end] for start, end in pairwise(points)]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n"
    head += b"content-encoding: gzip\r\n" if compressed else b""
    if framing == "chunked":
        head += b"transfer-encoding: chunked\r\n\r\n"
        pieces = [head, *(b"%x\r\n%b\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n"]
    elif framing == "length":
        pieces = [head + b"content-length: %d\r\n\r\n" % len(body), *parts]
    else:
        pieces = [head + b"\r\n", *parts]
    kept = pieces[: max(1, len(pieces) - lost)]
    # Nothing tells the end of an answer that ends with its connection.
    return Sent(tuple(kept), b"".join(parts[: len(kept) - 1]), len(kept) == len(pieces) or framing == "close")


STREAMS = st.builds(
    _packed,
    st.builds(
        _spelt,
        st.just(_STREAM),
        st.sampled_from([b"\n", b"\r\n", b"\r"]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    st.lists(st.integers(0, 4_000), max_size=12),
    st.sampled_from(["chunked", "length", "close"]),
    st.booleans(),
    st.sampled_from([0, 0, 0, 1, 2, 9]),
)


def test_a_stream_is_relayed_however_it_is_written(
    upstream: Upstream, gateway: ThreadedGateway, http: httpx.Client
) -> None:
    """CR, LF and CRLF, comments, a byte order mark, characters split in two, compression, a lost end."""
    faults = _faults(gateway)
    tasks, files = gateway.tasks(), open_files()

    @settings(
        max_examples=ANSWERS, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(STREAMS)
    def relay(sent: Sent) -> None:
        note(repr(sent))
        upstream.answer = sent
        got, whole = _relayed(http, gateway)
        assert whole is sent.whole
        assert got == sent.body if whole else sent.body.startswith(got)

    relay()
    assert _faults(gateway) == faults
    deadline = time.monotonic() + 10
    while (gateway.tasks() > tasks or open_files() > files + 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gateway.tasks() <= tasks
    assert open_files() <= files + 2  # the client's and the upstream's end of the one connection that is kept


def _relayed(http: httpx.Client, gateway: ThreadedGateway) -> tuple[bytes, bool]:
    """(what came, whether its end came)."""
    got = b""
    try:
        with http.stream("POST", f"{gateway.base_url}/chat/completions", json=_ASKED) as answer:
            for piece in answer.iter_raw():
                got += piece
    except httpx.RemoteProtocolError:
        return got, False
    return got, True


@pytest.mark.parametrize("project", [True, False])
def test_a_bomb_stays_packed(upstream: Upstream, gateway: ThreadedGateway, http: httpx.Client, project: bool) -> None:
    """300 MB in 300 kB reach the client as 300 kB: nobody but the client opens them."""
    bomb = gzip.compress(b'{"choices":[' + b" " * 300_000_000, 1)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\nconnection: close\r\n"
    upstream.answer = Sent((head + b"content-length: %d\r\n\r\n" % len(bomb) + bomb,), bomb, True)
    asked = FORMS["text"].chat(STRANGE) if project else {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    faults, started = _faults(gateway), time.monotonic()
    with http.stream("POST", f"{gateway.base_url}/chat/completions", json=asked) as answer:
        assert b"".join(answer.iter_raw()) == bomb
    assert time.monotonic() - started < 2
    assert _faults(gateway) == faults


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n\r\n",
        b"HELLO\r\n\r\n",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 7\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nx: \x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 200_000 + b": y\r\n\r\n",
    ],
    ids=lambda answer: repr(answer[:50]),
)
def test_what_is_no_answer_is_a_502(
    upstream: Upstream, gateway: ThreadedGateway, http: httpx.Client, answer: bytes
) -> None:
    """In OpenAI's shape; where an answer has begun its client sees it break off."""
    upstream.answer = Sent((answer,), b"", False)
    faults = _faults(gateway)
    try:
        seen = http.post(f"{gateway.base_url}/chat/completions", json=_ASKED)
    except httpx.RemoteProtocolError:
        pass
    else:
        assert (seen.status_code, seen.json()["error"]["code"]) == (502, "upstream_unreachable")
    assert _faults(gateway) == faults


def test_half_a_stream_is_no_trace(gateway: ThreadedGateway) -> None:
    """Of all that was sent above only what was said to its end has a label. Stops the gateway: goes last."""
    gateway.stop()
    store = Store.open(gateway.services.settings.store.url)
    try:
        learned = [trace.teacher for trace in store.traces(training_only=False) if trace.kind is AnswerKind.TEXT]
    finally:
        store.close()
    assert set(learned) == {_LABEL}
    assert len(learned) > ANSWERS // 4


def _faults(gateway: ThreadedGateway) -> float:
    families = gateway.services.metrics.registry.collect()
    return sum(s.value for family in families if family.name == "tracer_internal_errors" for s in family.samples)
