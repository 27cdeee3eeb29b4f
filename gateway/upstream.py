"""OpenAI-compatible upstreams: pooled, streamed, byte-faithful; the HTTP client behind a small interface.

Everything a provider could see or a client could miss travels: query, headers, bodies, status, in the order and the
encoding they came. Hop-by-hop headers and our own do not.
"""

import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Protocol

import aiohttp
import yarl
from multidict import CIMultiDict

from gateway.errors import AnswerableError, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from gateway.settings import UpstreamSettings

Headers = Iterable[tuple[bytes, bytes]]

# RFC 9110, 7.6.1, with what belongs to the client's connection to us (host, expect) and what the HTTP client writes.
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te"}
    | {b"trailer", b"transfer-encoding", b"upgrade"}
)
_REQUEST_ONLY = frozenset({b"host", b"expect"})
_OURS = b"x-tracer-"
_DEFAULT_PATH = "/v1"
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_LONGEST_HEADER = 65_536
# A kept-alive connection that was closed while idle says so within a round trip; a call being worked on takes longer.
_IDLE_CLOSE_SECONDS = 0.05
# Set by aiohttp unless told otherwise; the client's own headers are the only ones to travel.
_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

# An end, a reset or a broken pipe where an answer should begin.
_HUNG_UP = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)


@dataclass(frozen=True, slots=True)
class UpstreamCall:
    """A request to forward. `path` is what follows /v1, percent-encoded as it came."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes | AsyncIterator[bytes]


class UpstreamAnswer(Protocol):
    """An answer whose status and headers are there and whose body is yet to come. Close it on every exit."""

    status: int
    headers: list[tuple[bytes, bytes]]

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
        """Forward a call. Raises UpstreamUnreachable or UpstreamTimeout where no answer begins."""
        ...

    async def stop(self) -> None:
        """Close every connection."""
        ...


class HttpUpstream:
    """An upstream that speaks the OpenAI API itself."""

    def __init__(self, name: str, settings: UpstreamSettings, api_key: str | None) -> None:
        self.name = name
        self.training_allowed = settings.training_allowed
        self._settings = settings
        self._base = _base_url(settings.base_url or "")
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the connection pool."""
        # `connect` bounds all that comes before sending: the wait for a free connection, the look-up of the name, TLS.
        timeout = aiohttp.ClientTimeout(
            total=None, connect=self._settings.connect_timeout, sock_read=self._settings.read_timeout
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._settings.max_connections),
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_AUTO_HEADERS,
            auto_decompress=False,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
            trace_configs=[_reuse_noticed()],
        )

    async def stop(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()

    async def send(self, call: UpstreamCall) -> UpstreamAnswer:
        """Forward a call; a redirect is an answer like any other."""
        if self._session is None:
            raise RuntimeError("send before start")
        attempt = _Attempt()
        try:
            return _HttpAnswer(await self._request(self._session, call, attempt))
        except _HUNG_UP as error:
            # Nothing proves that the call was not read, so it goes out again only where a quick hang-up on a kept-alive
            # connection makes an idle close almost certain, and only once.
            if not attempt.closed_while_idle() or not isinstance(call.body, bytes):
                raise translate(error, self.name) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise translate(error, self.name) from error
        try:
            return _HttpAnswer(await self._request(self._session, call, _Attempt()))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise translate(error, self.name) from error

    async def _request(
        self, session: aiohttp.ClientSession, call: UpstreamCall, attempt: "_Attempt"
    ) -> aiohttp.ClientResponse:
        query = "?" + call.query.decode("latin-1") if call.query else ""
        bodiless = not call.body and call.method in _BODILESS
        return await session.request(
            call.method,
            yarl.URL(self._base + call.path + query, encoded=True),
            headers=self._headers(call),
            data=None if bodiless else call.body,
            allow_redirects=False,
            trace_request_ctx=attempt,
        )

    def _headers(self, call: UpstreamCall) -> CIMultiDict[str]:
        dropped = set(_REQUEST_ONLY)
        if isinstance(call.body, bytes):
            dropped.add(b"content-length")  # the HTTP client counts them; the model's name may have changed
        if self._authorization is not None:
            dropped.add(b"authorization")
        kept = [(n, v) for n, v in end_to_end(call.headers) if n not in dropped]
        if self._authorization is not None:
            kept.append((b"authorization", self._authorization))
        return CIMultiDict((n.decode("latin-1"), v.decode("latin-1")) for n, v in kept)


@dataclass(slots=True)
class _Attempt:
    """When a request was sent on a connection that had been used before; None on a fresh one."""

    reused_at: float | None = None

    def closed_while_idle(self) -> bool:
        """Whether a hang-up at this moment looks like one that was under way before the request came."""
        return self.reused_at is not None and time.monotonic() - self.reused_at < _IDLE_CLOSE_SECONDS


def _reuse_noticed() -> aiohttp.TraceConfig:
    config = aiohttp.TraceConfig()

    async def reused(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
        context.trace_request_ctx.reused_at = time.monotonic()

    config.on_connection_reuseconn.append(reused)
    return config


class _HttpAnswer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = end_to_end((name.lower(), value) for name, value in response.raw_headers)
        self._response = response

    async def read(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamBroken(f"the answer broke off ({type(error).__name__})") from error

    async def close(self) -> None:
        self._response.close()


def end_to_end(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that travel on: neither hop-by-hop, nor named by Connection, nor ours. Names are lower case."""
    pairs = list(headers)
    named = {token.strip().lower() for name, value in pairs if name == b"connection" for token in value.split(b",")}
    dropped = _HOP_BY_HOP | named
    return [(n, v) for n, v in pairs if n not in dropped and not n.startswith(_OURS)]


def translate(error: Exception, upstream: str) -> AnswerableError:
    """The gateway's error for one of the HTTP client's, before an answer has begun. The only place that maps them."""
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(f"The upstream {upstream!r} did not answer in time.")
    return UpstreamUnreachable(f"The upstream {upstream!r} could not be reached ({type(error).__name__}).")


def _base_url(url: str) -> str:
    # What one gives an OpenAI client ends in /v1; a bare host is meant the same way.
    base = url.rstrip("/")
    return base if base.count("/") > 2 else base + _DEFAULT_PATH
