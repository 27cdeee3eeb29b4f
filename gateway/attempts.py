"""One call over an upstream's breaker, its retries and its fallbacks, behind the interface of a single upstream.

docs/behaviour.md is the contract. In short: what may have been worked on is not repeated; what was answered is repeated
where the answer allows it; a fallback's answer is taken only where it is a success.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from gateway.breaker import Breaker, Ticket
from gateway.errors import AnswerableError, UpstreamBroken, UpstreamTimeout, UpstreamUnavailable, UpstreamUnreachable
from gateway.headers import ACCOUNT_HEADERS, without_account
from gateway.large import renamed
from gateway.metrics import Metrics
from gateway.retrying import is_repeatable, leaves_nothing, may_retry, wait_before
from gateway.settings import UpstreamSettings
from gateway.upstream import Upstream, UpstreamAnswer, UpstreamCall

# An upstream that says so is not there, or a proxy in front of it found nobody.
_AWAY = frozenset({502, 503, 504})
# Time-outs that no client can bring about by sending slowly.
_UPSTREAMS_OWN = frozenset({"connect_timeout", "write_timeout"})
# Calls that another model can answer. An embedding of another model is no substitute.
_REPLACEABLE = frozenset({"/chat/completions", "/completions", "/responses"})
# An error's body is read ahead within these, so that it needs no connection while others are asked.
_AHEAD_BYTES = 65_536
_AHEAD_SECONDS = 0.5


class Guarded:
    """An upstream with its breaker and its retries."""

    def __init__(self, upstream: Upstream, settings: UpstreamSettings, metrics: Metrics) -> None:
        self.name = upstream.name
        self.training_allowed = upstream.training_allowed
        self.settings = settings
        self._upstream = upstream
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)
        self._metrics = metrics
        self._is_open = metrics.breaker_open.labels(self.name)
        self._is_open.set(0)
        self._shown = False

    async def start(self) -> None:
        """Open what needs a running loop."""
        await self._upstream.start()

    async def stop(self) -> None:
        """Close every connection."""
        await self._upstream.stop()

    async def send(self, call: UpstreamCall) -> UpstreamAnswer:
        """Forward a call, again where that is allowed. Raises UpstreamUnavailable while the breaker is open."""
        if call.aside:
            return await self._aside(call)
        # A body that comes piece by piece is gone when it has been sent.
        retries = self.settings.retries if isinstance(call.body, bytes) else 0
        for retried in range(retries):
            try:
                answer = await self._once(call)
            except (UpstreamUnreachable, UpstreamTimeout) as error:
                if self._breaker.open or not may_retry(error):
                    raise
                wait: float | None = wait_before(retried, [], self.settings.max_retry_wait)
            else:
                if self._breaker.open or not may_retry(answer) or not is_repeatable(call):
                    return answer
                wait = wait_before(retried, answer.headers, self.settings.max_retry_wait)
                if wait is None:
                    return answer
                # Read to its end, so that the connection can be used again.
                await (await _ahead(answer)).close()
            self._metrics.upstream_retries.labels(self.name).inc()
            await asyncio.sleep(wait or 0.0)
        return await self._once(call)

    async def _once(self, call: UpstreamCall) -> UpstreamAnswer:
        self._check_breaker()
        upload = None if isinstance(call.body, bytes) else _Upload(call.body)
        asked = call if upload is None else call._replace(body=upload)
        ticket = self._breaker.enter()
        try:
            answer = await self._upstream.send(asked)
        except BaseException as error:
            self._failed(ticket, error, upload)
            raise
        else:
            if answer.status in _AWAY:
                self._missed(ticket, upload)
            else:
                self._breaker.succeeded()
            if answer.status >= 400:
                self._count(f"status_{answer.status // 100}xx")
            return answer
        finally:
            self._tell()

    async def _aside(self, call: UpstreamCall) -> UpstreamAnswer:
        """A call that nobody waits for: never the probe that others wait for, and its failure opens no breaker."""
        self._check_breaker()
        try:
            answer = await self._upstream.send(call)
        except UpstreamUnreachable:
            self._count("unreachable")
            raise
        except UpstreamTimeout as error:
            if error.setting != "pool_timeout":
                self._count("timeout")
            raise
        if answer.status not in _AWAY:
            self._breaker.succeeded()
            self._tell()
        if answer.status >= 400:
            self._count(f"status_{answer.status // 100}xx")
        return answer

    def _check_breaker(self) -> None:
        if wait := self._breaker.wait():
            message = f"The upstream {self.name!r} failed too often in a row; it is asked again in a while."
            raise UpstreamUnavailable(message, math.ceil(wait))

    def _tell(self) -> None:
        if self._shown is not self._breaker.open:
            self._shown = self._breaker.open
            self._is_open.set(self._shown)

    def _failed(self, ticket: Ticket, error: BaseException, upload: "_Upload | None") -> None:
        if isinstance(error, UpstreamUnreachable):
            self._count("unreachable")
            self._missed(ticket, upload if error.sent else None)
        elif isinstance(error, UpstreamTimeout) and error.setting != "pool_timeout":
            self._count("timeout")
            self._missed(ticket, None if error.setting in _UPSTREAMS_OWN else upload)
        else:
            # The client left or erred, or found no place among connections whose number is ours: no verdict.
            if isinstance(error, UpstreamTimeout):
                self._count("timeout")
            self._breaker.left(ticket)

    def _missed(self, ticket: Ticket, upload: "_Upload | None") -> None:
        """Count a failure, but where it may be the client's: one that does not send what it announced."""
        if upload is not None and not upload.whole:
            self._breaker.left(ticket)
        else:
            self._breaker.failed(ticket)

    def _count(self, kind: str) -> None:
        self._metrics.upstream_errors.labels(self.name, kind).inc()


class _Upload:
    """A body on its way, which knows whether its end has been handed on."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.whole = False
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            self.whole = True
            raise


@dataclass(frozen=True, slots=True)
class Fallback:
    """Who is asked next, and for which model; None: the call's own."""

    upstream: Guarded
    model: str | None


class Route:
    """An upstream with those that stand in for it. Their own fallbacks are not followed."""

    def __init__(
        self,
        upstream: Guarded,
        fallbacks: Sequence[Fallback],
        metrics: Metrics,
        account_headers: frozenset[bytes] = ACCOUNT_HEADERS,
    ) -> None:
        self.name = upstream.name
        self.training_allowed = upstream.training_allowed
        self._upstream = upstream
        self._fallbacks = fallbacks
        self._account_headers = account_headers
        self._metrics = metrics

    async def start(self) -> None:
        """Open what needs a running loop; the fallbacks are routes of their own."""
        await self._upstream.start()

    async def stop(self) -> None:
        """Close every connection."""
        await self._upstream.stop()

    async def send(self, call: UpstreamCall) -> UpstreamAnswer:
        """Forward a call; where it fails, to the fallbacks in order. The first failure is told where none succeeds."""
        alone = call.aside or call.path not in _REPLACEABLE
        if not self._fallbacks or alone or not isinstance(call.body, bytes):
            return await self._upstream.send(call)
        try:
            first = await self._upstream.send(call)
        except (UpstreamUnreachable, UpstreamTimeout, UpstreamUnavailable):
            answer = await self._from_fallbacks(call, call.body) if leaves_nothing(call.path, call.body) else None
            if answer is None:
                raise
            return answer
        if (first.status != 429 and first.status < 500) or not leaves_nothing(call.path, call.body):
            return first
        first = await _ahead(first)
        try:
            answer = await self._from_fallbacks(call, call.body)
        except BaseException:
            await first.close()
            raise
        if answer is None:
            return first
        await first.close()
        return answer

    async def _from_fallbacks(self, call: UpstreamCall, body: bytes) -> UpstreamAnswer | None:
        for fallback in self._fallbacks:
            asked = await self._asked_of(fallback, call, body)
            answer = None if asked is None else await _from(fallback, asked)
            if answer is not None:
                self._metrics.upstream_fallbacks.labels(self.name, fallback.upstream.name).inc()
                return answer
        self._metrics.upstream_fallbacks.labels(self.name, "").inc()
        return None

    async def _asked_of(self, fallback: Fallback, call: UpstreamCall, body: bytes) -> UpstreamCall | None:
        headers, query = call.headers, call.query
        if not self._upstream.settings.same_place(fallback.upstream.settings):
            headers, query = without_account(headers, self._account_headers), b""
        asked = body if fallback.model is None else await renamed(body, fallback.model)
        if asked is None:
            return None
        return UpstreamCall(call.method, call.path, query, headers, asked)


async def _from(fallback: Fallback, call: UpstreamCall) -> UpstreamAnswer | None:
    """A fallback's answer; None where it has no success to offer."""
    try:
        answer = await fallback.upstream.send(call)
    except AnswerableError:
        return None
    if not 200 <= answer.status < 300:
        await (await _ahead(answer)).close()
        return None
    answer.origin = answer.origin._replace(model=fallback.model, fallback=True)
    return answer


async def _ahead(answer: UpstreamAnswer) -> "_Ahead":
    """The answer, its body read ahead as far as the limits go."""
    pieces: list[bytes] = []
    try:
        async with asyncio.timeout(_AHEAD_SECONDS):
            while sum(map(len, pieces)) < _AHEAD_BYTES and (piece := await answer.read()):
                pieces.append(piece)
    except (TimeoutError, UpstreamBroken):
        pass  # the next read says so again
    except BaseException:
        await answer.close()
        raise
    return _Ahead(answer, pieces)


class _Ahead:
    """An answer of which some pieces have been read already."""

    def __init__(self, answer: UpstreamAnswer, pieces: list[bytes]) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.origin = answer.origin
        self._answer = answer
        self._pieces = pieces

    def at_hand(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else await self._answer.read()

    async def close(self) -> None:
        await self._answer.close()
