"""What a provider or litellm raised -> the provider's own answer in OpenAI's shape, or the gateway's error.

litellm gives a refused connection the status 500 and a client's mistake the class APIConnectionError, so neither its
classes nor its statuses say who failed. What they were raised from does.
"""

import traceback
from collections.abc import Iterator
from typing import Any

import httpx
import orjson

from gateway.errors import InvalidRequest, UpstreamTimeout, UpstreamUnreachable, printable

Headers = list[tuple[bytes, bytes]]

# What a client needs to know about coming back.
_KEPT = ("retry-after", "retry-after-ms", "x-should-retry")
# Raised by litellm's own code where a request holds what it did not expect.
_MISREAD = (KeyError, TypeError, AttributeError, ValueError, IndexError)
_PHASES: tuple[tuple[type[httpx.TimeoutException], str], ...] = (
    (httpx.ConnectTimeout, "connect_timeout"),
    (httpx.WriteTimeout, "write_timeout"),
    (httpx.PoolTimeout, "pool_timeout"),
)


def answered(error: Exception, upstream: str) -> tuple[int, Headers, bytes]:
    """(status, headers, body) of the provider's refusal.

    Raises UpstreamTimeout and UpstreamUnreachable where the provider gave no answer, InvalidRequest where the request
    could not be put into the provider's terms.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, httpx.HTTPStatusError):
            return _refusal(error, cause.response.status_code, cause.response)
        if isinstance(cause, httpx.TimeoutException):
            setting = next((name for kind, name in _PHASES if isinstance(cause, kind)), "read_timeout")
            raise UpstreamTimeout(f"The upstream {upstream!r} did not answer in time ({setting}).", setting) from error
        if isinstance(cause, httpx.TransportError):
            sent = not isinstance(cause, httpx.ConnectError)
            message = f"The upstream {upstream!r} could not be reached ({type(cause).__name__})."
            raise UpstreamUnreachable(message, sent=sent) from error
    if any(isinstance(cause, TimeoutError) for cause in causes):
        raise UpstreamTimeout(f"The upstream {upstream!r} did not answer in time (read_timeout).") from error
    misread = next((cause for cause in causes if isinstance(cause, _MISREAD)), None)
    if misread is not None and _in_the_answer(misread):
        # An HTML page, say. litellm calls it many things, a mistake of the client's among them.
        message = f"The upstream {upstream!r} answered with what cannot be read ({type(misread).__name__})."
        raise UpstreamUnreachable(message) from error
    return _judged(error, causes, misread, upstream)


def _judged(
    error: Exception, causes: list[BaseException], misread: BaseException | None, upstream: str
) -> tuple[int, Headers, bytes]:
    """As `answered`, of an error with neither an answer nor a lost connection behind it: by what litellm made of it."""
    statuses = [status for cause in causes if type(status := getattr(cause, "status_code", None)) is int]
    if not any(status < 400 for status in statuses):  # or there was an answer, and it was none of the API's
        if statuses and statuses[0] < 500:
            return _refusal(error, statuses[0], None)
        if misread is not None:
            kind = type(misread).__name__
            raise InvalidRequest(f"The request cannot be put into the terms of the upstream {upstream!r} ({kind}).")
        if statuses and statuses[0] < 600:
            return _refusal(error, statuses[0], None)
    raise UpstreamUnreachable(f"The upstream {upstream!r} gave no answer ({type(error).__name__}).") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _in_the_answer(error: BaseException) -> bool:
    """Whether an answer was being read, not a request written: where it was raised, an answer was at hand."""
    held = (value for frame, _ in traceback.walk_tb(error.__traceback__) for value in frame.f_locals.values())
    return any(isinstance(value, httpx.Response) and value.is_success for value in held)


def _refusal(error: Exception, status: int, response: httpx.Response | None) -> tuple[int, Headers, bytes]:
    told = _told(response)
    fields = {
        "message": told.get("message") or str(getattr(error, "message", error)),
        "type": told.get("type") or ("invalid_request_error" if status < 500 else "server_error"),
        "param": told.get("param"),
        "code": told.get("code"),
    }
    given = dict(response.headers) if response is not None else {}
    given |= getattr(error, "litellm_response_headers", None) or {}
    headers = [(name.encode(), str(given[name]).encode("latin-1", "replace")) for name in _KEPT if name in given]
    return status, headers, orjson.dumps({"error": _printable(fields)}, default=str)


def _printable(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: printable(value) if type(value) is str else value for name, value in fields.items()}


def _told(response: httpx.Response | None) -> dict[str, Any]:
    """The error object in a provider's own words: OpenAI's, Anthropic's and Google's have the same key for it."""
    try:
        body = orjson.loads(response.content) if response is not None else None
    except (orjson.JSONDecodeError, httpx.ResponseNotRead):
        return {}
    told = body.get("error") if type(body) is dict else None
    return told if type(told) is dict else {}
