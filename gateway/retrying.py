"""Whether a call may be repeated, and when: what OpenAI's own clients do, and nothing that may have been worked on."""

import email.utils
import math
import random
import time

from gateway.errors import AnswerableError, InvalidRequest, UpstreamTimeout, UpstreamUnreachable
from gateway.large import AT_ONCE
from gateway.upstream import UpstreamAnswer, UpstreamCall
from gateway.wire import parse_object

# The statuses and times are those of the official Python client, openai/_base_client.py and _constants.py.
_PASSING = frozenset({408, 409, 429, 500, 502, 503, 504})
_FIRST_WAIT = 0.5  # seconds; doubles with every retry
_LONGEST_WAIT = 8.0
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
# Asked twice, they have answered twice, and nothing else has happened.
_QUESTIONS = frozenset({"/chat/completions", "/completions", "/decisions", "/embeddings", "/moderations"})
_RESPONSES = "/responses"


def is_repeatable(call: UpstreamCall) -> bool:
    """Whether a call that was answered with a failure may go out again: it has no effect, or one that is the same."""
    if call.method in _IDEMPOTENT or call.path in _QUESTIONS:
        return True
    return call.path == _RESPONSES and isinstance(call.body, bytes) and leaves_nothing(call.path, call.body)


def leaves_nothing(path: str, body: bytes) -> bool:
    """Whether an answer is all that comes of a call, and needs nothing that was kept of an earlier one.

    A response is kept unless its call says `store: false`, a completion where it says `store: true`. What would take
    long to read is not read: a completion that nowhere speaks of it leaves nothing, all else may be anything.
    """
    if len(body) > AT_ONCE:
        return path != _RESPONSES and b'"store"' not in body and b"\\u00" not in body
    try:
        asked = parse_object(body)
    except InvalidRequest:
        return path != _RESPONSES
    if path != _RESPONSES:
        return not asked.get("store")
    held = asked.get("previous_response_id") or asked.get("conversation") or asked.get("background")
    return asked.get("store") is False and not held


def may_retry(failed: UpstreamAnswer | AnswerableError) -> bool:
    """Whether the same call may go out again: its connection was never made, or its answer allows it."""
    if isinstance(failed, UpstreamUnreachable):
        return not failed.sent
    if isinstance(failed, UpstreamTimeout):
        return failed.setting == "connect_timeout"
    if isinstance(failed, AnswerableError) or failed.status < 400:
        return False
    told = dict(failed.headers).get(b"x-should-retry", b"").strip().lower()
    return told == b"true" or (told != b"false" and failed.status in _PASSING)


def wait_before(retried: int, headers: list[tuple[bytes, bytes]], longest: float) -> float | None:
    """Seconds until the retry that `retried` others came before; None where the upstream asks for more than `longest`.

    What the upstream asks for is kept to; where it says nothing, the wait doubles with every retry and has up to a
    quarter taken off at random, so that calls that failed together do not come back together.
    """
    asked = seconds_asked(headers)
    if asked is not None:
        return asked if asked <= longest else None
    wait: float = min(_FIRST_WAIT * 2**retried, _LONGEST_WAIT, longest)
    return wait * (1 - 0.25 * random.random())  # noqa: S311 - spreads calls, hides nothing


def seconds_asked(answered: list[tuple[bytes, bytes]]) -> float | None:
    """The seconds an answer's headers ask its client to wait; None where they do not, or in no way that can be read."""
    headers = dict(answered)
    for name, unit in ((b"retry-after-ms", 1e-3), (b"retry-after", 1.0)):
        seconds = _number(headers.get(name, b""))
        if seconds is not None:
            return max(0.0, seconds * unit)
    date = email.utils.parsedate_tz(headers.get(b"retry-after", b"").decode("latin-1"))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


def _number(value: bytes) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return None if math.isnan(number) else number
