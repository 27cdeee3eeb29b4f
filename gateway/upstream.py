"""OpenAI-compatible upstreams: pooled, streamed, byte-faithful; the HTTP client behind a small interface.

Everything a provider could see or a client could miss travels: query, headers, bodies, status, in the order and the
encoding they came. Hop-by-hop headers and our own do not.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

import aiohttp
import yarl
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from multidict import CIMultiDict

from gateway.errors import AnswerableError, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from gateway.headers import ACCOUNT_HEADERS, Headers, end_to_end, forwarded, without_account
from gateway.limits import room_aside
from gateway.request_body import PIECE, RequestBody, WriteStalled, whole
from gateway.settings import UpstreamSettings

_DEFAULT_PATH = "/v1"
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
# Answers without a body, whose content-length, where there is one, is that of another answer.
_EMPTY = frozenset({204, 304})
_LONGEST_HEADER = 65_536
# A kept-alive connection that was closed while idle says so within a round trip; a call being worked on takes longer.
_IDLE_CLOSE_SECONDS = 0.05
_URLS, _LONGEST_PATH = 256, 128  # that are remembered
# Set by aiohttp unless told otherwise; the client's own headers are the only ones to travel.
_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

# An end, a reset or a broken pipe where an answer should begin.
_HUNG_UP = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)


class UpstreamCall(NamedTuple):
    """A request to forward. `path` is what follows /v1, percent-encoded as it came.

    `aside`: nobody waits for it. It is sent once, to nobody else, and only where it takes nothing from other calls.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes | AsyncIterator[bytes]
    aside: bool = False


class Origin(NamedTuple):
    """Who answered: an upstream, by the name the settings give it.

    `fallback`: it stood in for the upstream that was to be asked. `model` is what it was asked for where that is
    another model than the call's own. `named`: the model that an answer names is the one that gave it, and not only the
    one that was asked for.
    """

    upstream: str
    model: str | None = None
    fallback: bool = False
    named: bool = True


class UpstreamAnswer(Protocol):
    """An answer whose status and headers are there and whose body is yet to come. Close it on every exit."""

    status: int
    headers: list[tuple[bytes, bytes]]
    origin: Origin

    def at_hand(self) -> bytes:
        """The bytes that have come, without waiting for any; b"" says nothing of the end."""
        ...

    async def read(self) -> bytes:
        """The bytes that have come, b"" at the end. Raises UpstreamBroken where they stop before their end."""
        ...

    async def close(self) -> None:
        """Give the connection back where the body was read to its end, hang up where it was not."""
        ...


class Upstream(Protocol):
    """One place to forward calls to."""

    name: str
    training_allowed: bool

    async def start(self) -> None:
        """Open what needs a running loop."""
        ...

    async def send(self, call: UpstreamCall) -> UpstreamAnswer:
        """Forward a call. Raises UpstreamUnreachable, UpstreamTimeout or UpstreamUnavailable where no answer begins."""
        ...

    async def stop(self) -> None:
        """Close every connection."""
        ...


class HttpUpstream:
    """An upstream that speaks the OpenAI API itself.

    Where it has a key of its own, nothing of the client's account (`account_headers`, cookies) travels to it. `secret`
    never does.
    """

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        api_key: str | None,
        account_headers: frozenset[bytes] = ACCOUNT_HEADERS,
        secret: bytes = b"",
    ) -> None:
        self.name = name
        self.training_allowed = settings.training_allowed
        self._settings = settings
        self._base = _base_url(settings.base_url or "")
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()
        self._account_headers = account_headers
        self._secret = secret
        self._session: aiohttp.ClientSession | None = None
        self._places = asyncio.Semaphore(settings.max_connections)
        self._taken = self._taken_aside = 0
        self._losses = _Losses()

    async def start(self) -> None:
        """Open the connection pool."""
        # `connect` bounds the look-up of the name, the connection and TLS. The wait for a free connection is bounded
        # here, under a limit of its own, so the connector needs none.
        timeout = aiohttp.ClientTimeout(
            total=None, connect=self._settings.connect_timeout, sock_read=self._settings.read_timeout
        )
        self._session = aiohttp.ClientSession(
            connector=_Connector(),
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_AUTO_HEADERS,
            auto_decompress=False,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )

    async def stop(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()

    async def send(self, call: UpstreamCall) -> UpstreamAnswer:
        """Forward a call; a redirect is an answer like any other."""
        if self._session is None:
            raise RuntimeError("send before start")
        if call.aside and not room_aside(self._settings.max_connections, self._taken, self._taken_aside):
            raise UpstreamTimeout(f"The connections to the upstream {self.name!r} are in use.", "pool_timeout")
        if self._places.locked():
            await self._wait_for_place()
        else:
            await self._places.acquire()
        self._taken += 1
        self._taken_aside += call.aside
        leave = partial(self._leave, call.aside)
        try:
            response = await self._response(self._session, call)
        except BaseException:
            leave()
            raise
        answer = _HttpAnswer(response, Origin(self.name), leave)
        self._losses.tell(response, answer)
        return answer

    def _leave(self, aside: bool) -> None:
        self._taken -= 1
        self._taken_aside -= aside
        self._places.release()

    async def _wait_for_place(self) -> None:
        try:
            async with asyncio.timeout(self._settings.pool_timeout):
                await self._places.acquire()
        except TimeoutError:
            message = f"None of the connections to the upstream {self.name!r} became free in time (pool_timeout)."
            raise UpstreamTimeout(message, "pool_timeout") from None

    async def _response(self, session: aiohttp.ClientSession, call: UpstreamCall) -> aiohttp.ClientResponse:
        attempt = _Attempt()
        try:
            return await self._request(session, call, attempt)
        except _HUNG_UP as error:
            # Nothing proves that the call was not read, so it goes out again only where a quick hang-up on a kept-alive
            # connection makes an idle close almost certain, and only once.
            if not attempt.closed_while_idle() or not isinstance(call.body, bytes):
                raise translate(error, self.name) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise translate(error, self.name) from error
        try:
            return await self._request(session, call, _Attempt())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise translate(error, self.name) from error

    async def _request(
        self, session: aiohttp.ClientSession, call: UpstreamCall, attempt: "_Attempt"
    ) -> aiohttp.ClientResponse:
        _ATTEMPT.set(attempt)
        response = await session.request(
            call.method,
            _url(self._base, call.path, call.query),
            headers=self._headers(call),
            data=self._data(call),
            allow_redirects=False,
        )
        if not 200 <= response.status < 600:
            # Another protocol, which nobody asked for, or no status there is.
            response.close()
            raise UpstreamUnreachable(f"The upstream {self.name!r} answered with status {response.status}.")
        return response

    def _data(self, call: UpstreamCall) -> bytes | RequestBody | None:
        if not isinstance(call.body, bytes):
            return RequestBody(call.body, None, self._settings.write_timeout)
        if len(call.body) > PIECE:
            return RequestBody(whole(call.body), len(call.body), self._settings.write_timeout)
        # One piece, which the system takes at once.
        return None if not call.body and call.method in _BODILESS else call.body

    def _headers(self, call: UpstreamCall) -> CIMultiDict[str]:
        kept = forwarded(call.headers, self._secret)
        if isinstance(call.body, bytes):
            # The HTTP client counts them; the model's name may have changed.
            kept = [(n, v) for n, v in kept if n != b"content-length"]
        if self._authorization is not None:
            kept = [*without_account(kept, self._account_headers), (b"authorization", self._authorization)]
        return CIMultiDict((n.decode("latin-1"), _text(v)) for n, v in kept)


@dataclass(slots=True)
class _Attempt:
    """When a request was sent on a connection that had been used before; None on a fresh one."""

    reused_at: float | None = None

    def closed_while_idle(self) -> bool:
        """Whether a hang-up at this moment looks like one that was under way before the request came."""
        return self.reused_at is not None and time.monotonic() - self.reused_at < _IDLE_CLOSE_SECONDS


# Of the call that is being sent. The HTTP client's own hooks say the same at a quarter of what a call costs.
_ATTEMPT: ContextVar[_Attempt] = ContextVar("attempt")


class _Connector(aiohttp.TCPConnector):
    """Connections whose number is bounded elsewhere, and a note on those that have been used before."""

    def __init__(self) -> None:
        super().__init__(limit=0)
        self._used: WeakSet[asyncio.Protocol] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - the method it overrides has it
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        if connection.protocol in self._used:
            _ATTEMPT.get().reused_at = time.monotonic()
        elif connection.protocol is not None:
            self._used.add(connection.protocol)
        return connection


class _HttpAnswer:
    def __init__(self, response: aiohttp.ClientResponse, origin: Origin, done: Callable[[], None]) -> None:
        self.status = response.status
        self.headers = _answer_headers(response)
        self.origin = origin
        self._response = response
        self._done: Callable[[], None] | None = done

    def at_hand(self) -> bytes:
        content = self._response.content
        # Broken or at its end: reading says so.
        return b"" if content.exception() is not None or content.at_eof() else content.read_nowait()

    async def read(self) -> bytes:
        try:
            piece = await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamBroken(f"the answer broke off ({type(error).__name__})") from error
        if not piece:
            self._leave()
        return piece

    async def close(self) -> None:
        self._response.close()
        self._leave()

    def lost(self) -> None:
        """Its connection is no more: what has not come will not come."""
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection was closed"))

    def _leave(self) -> None:
        """Make room for the next call, once."""
        if self._done is not None:
            self._done()
            self._done = None


class _Losses:
    """Tells an answer that its connection is lost.

    aiohttp tells it of most losses, but not where a chunk's length cannot be read: such an answer would never end.
    """

    def __init__(self) -> None:
        self._answers: WeakKeyDictionary[asyncio.Protocol, _HttpAnswer] = WeakKeyDictionary()

    def tell(self, response: aiohttp.ClientResponse, answer: _HttpAnswer) -> None:
        """Tell `answer` of the loss of its connection, where it still has one."""
        protocol = response.connection and response.connection.protocol
        if protocol is None:
            return
        known = protocol in self._answers
        self._answers[protocol] = answer
        if not known and protocol.closed is not None:
            protocol.closed.add_done_callback(partial(self._lost, ref(protocol)))

    def _lost(self, lost: "ref[asyncio.Protocol]", closed: "asyncio.Future[None]") -> None:
        closed.exception()  # seen: the HTTP client tells it to whoever reads
        protocol = lost()
        answer = None if protocol is None else self._answers.pop(protocol, None)
        if answer is not None:
            answer.lost()


def _answer_headers(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    raw = [(name.lower(), value) for name, value in response.raw_headers]
    # Beside transfer-encoding a content-length has no meaning (RFC 9112, 6.3).
    without_length = response.status in _EMPTY or any(name == b"transfer-encoding" for name, _ in raw)
    kept = end_to_end(raw)
    return [(n, v) for n, v in kept if n != b"content-length"] if without_length else kept


def translate(error: Exception, upstream: str) -> AnswerableError:
    """The gateway's error for one of the HTTP client's, before an answer has begun. The only place that maps them."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamTimeout(
            f"The upstream {upstream!r} could not be connected to in time (connect_timeout).", "connect_timeout"
        )
    if isinstance(error, WriteStalled):
        return UpstreamTimeout(
            f"The upstream {upstream!r} stopped taking the request (write_timeout).", "write_timeout"
        )
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(f"The upstream {upstream!r} did not answer in time (read_timeout).", "read_timeout")
    sent = not isinstance(error, aiohttp.ClientConnectorError)
    return UpstreamUnreachable(f"The upstream {upstream!r} could not be reached ({type(error).__name__}).", sent=sent)


def _url(base: str, path: str, query: bytes) -> yarl.URL:
    # Only what comes again and again is remembered, and nothing that may hold a key.
    if not query and len(path) <= _LONGEST_PATH:
        return _plain_url(base, path)
    return yarl.URL(base + path + ("?" + query.decode("latin-1") if query else ""), encoded=True)


@lru_cache(_URLS)
def _plain_url(base: str, path: str) -> yarl.URL:
    return yarl.URL(base + path, encoded=True)


def _text(value: bytes) -> str:
    # The HTTP client writes UTF-8. What is none can only be sent as the characters it would have been in Latin-1.
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _base_url(url: str) -> str:
    # What one gives an OpenAI client ends in /v1; a bare host is meant the same way.
    base = url.rstrip("/")
    return base if base.count("/") > 2 else base + _DEFAULT_PATH
