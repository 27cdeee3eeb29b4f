"""Whether a call may be repeated, and when."""

import email.utils
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import AnswerableError, UpstreamTimeout, UpstreamUnavailable, UpstreamUnreachable
from gateway.retrying import is_repeatable, leaves_nothing, may_retry, wait_before
from gateway.upstream import UpstreamCall


def _answer(status: int, **headers: str) -> Any:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return SimpleNamespace(status=status, headers=pairs)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_repeated(status: int) -> None:
    """Unless the upstream says otherwise."""
    assert may_retry(_answer(status))
    assert not may_retry(_answer(status, x_should_retry="false"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501])
def test_a_lasting_failure_is_not(status: int) -> None:
    """Unless the upstream says otherwise."""
    assert not may_retry(_answer(status))
    assert may_retry(_answer(status, x_should_retry="true"))


def test_an_answer_that_is_no_failure_is_never_repeated() -> None:
    """Whatever it says."""
    assert not may_retry(_answer(200, x_should_retry="true"))
    assert not may_retry(_answer(307))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UpstreamUnreachable("", sent=False), True),
        (UpstreamUnreachable("", sent=True), False),
        (UpstreamTimeout("", "connect_timeout"), True),
        (UpstreamTimeout("", "read_timeout"), False),
        (UpstreamTimeout("", "write_timeout"), False),
        (UpstreamTimeout("", "pool_timeout"), False),
        (UpstreamUnavailable("", 1), False),
    ],
)
def test_a_call_that_may_have_been_worked_on_is_not_repeated(error: AnswerableError, expected: bool) -> None:
    """Only one whose connection was never made."""
    assert may_retry(error) is expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"retry-after", b"3")], 3.0),
        ([(b"retry-after", b"0.5")], 0.5),
        ([(b"retry-after", b"0")], 0.0),
        ([(b"retry-after", b"-1")], 0.0),
        ([(b"retry-after", b"9"), (b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after", b"21")], None),
        ([(b"retry-after", b"inf")], None),
    ],
)
def test_the_upstreams_own_time_is_kept_to(headers: list[tuple[bytes, bytes]], expected: float | None) -> None:
    """None where it is more than `max_retry_wait`."""
    assert wait_before(0, headers, 20.0) == expected


def test_a_date_is_a_time_too() -> None:
    """As RFC 9110 allows."""
    date = email.utils.formatdate(time.time() + 10, usegmt=True).encode()
    wait = wait_before(0, [(b"retry-after", date)], 20.0)
    assert wait is not None
    assert 8.0 < wait <= 10.0


@pytest.mark.parametrize(("retried", "longest"), [(0, 0.5), (1, 1.0), (2, 2.0), (4, 8.0), (9, 8.0)])
@pytest.mark.parametrize("given", [b"", b"soon", b"nan"])
def test_without_one_the_wait_doubles(retried: int, longest: float, given: bytes) -> None:
    """With up to a quarter taken off, never above `max_retry_wait`."""
    wait = wait_before(retried, [(b"retry-after", given)], 20.0)
    assert wait is not None
    assert 0.75 * longest <= wait <= longest
    short = wait_before(9, [], 0.1)
    assert short is not None
    assert short <= 0.1


CHAT, RESPONSES = "/chat/completions", "/responses"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, b"{}", True),
        (CHAT, b'{"store": false}', True),
        (CHAT, b'{"store": true}', False),
        (CHAT, b"not JSON", True),
        (RESPONSES, b"{}", False),
        (RESPONSES, b'{"store": null}', False),
        (RESPONSES, b'{"store": true}', False),
        (RESPONSES, b"not JSON", False),
        (RESPONSES, b'{"store": false}', True),
        (RESPONSES, b'{"store": false, "background": true}', False),
        (RESPONSES, b'{"store": false, "previous_response_id": "resp_1"}', False),
        (RESPONSES, b'{"store": false, "conversation": "conv_1"}', False),
        (RESPONSES, b'{"store": false, "conversation": null, "background": false}', True),
    ],
)
def test_an_answer_may_be_all_that_comes_of_a_call(path: str, body: bytes, expected: bool) -> None:
    """Responses are kept by whoever answers, unless they are asked not to be."""
    assert leaves_nothing(path, body) is expected


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", CHAT, True),
        ("POST", "/decisions", True),
        ("POST", "/embeddings", True),
        ("POST", "/moderations", True),
        ("POST", RESPONSES, False),
        ("POST", "/threads", False),
        ("PUT", "/threads/t", False),
        ("GET", "/models", True),
        ("HEAD", "/models", True),
        ("DELETE", "/files/f", True),
    ],
)
def test_a_call_that_makes_something_is_not_repeated(method: str, path: str, expected: bool) -> None:
    """It may have been made before the answer went wrong."""
    assert is_repeatable(UpstreamCall(method, path, b"", [], b"")) is expected
