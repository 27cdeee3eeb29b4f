"""Recorded requests, byte by byte: to the teacher, and through the gateway."""

from collections.abc import Iterator

import httpx
import pytest

from tests.fidelity.conftest import Route
from tests.fidelity.differences import forwarded_headers, handled_headers
from tests.fidelity.recorded import RECORDED, Recorded
from tests.fidelity.world import FORMS, World
from tests.scripted_teacher import Call, ScriptedTeacher


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """A client that takes what comes."""
    with httpx.Client(timeout=30) as client:
        yield client


def _ask(http: httpx.Client, route: Route, recorded: Recorded) -> tuple[int, list[tuple[str, str]], bytes]:
    """(status, headers, body as it came over the wire)."""
    url = route.base_url + recorded.path
    with http.stream(recorded.method, url, content=recorded.body or None, headers=recorded.headers) as answer:
        return answer.status_code, forwarded_headers(answer.headers.multi_items()), b"".join(answer.iter_raw())


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_a_forwarded_call_is_the_same_to_the_byte(
    http: httpx.Client, direct: Route, through: Route, openai_teacher: ScriptedTeacher, recorded: Recorded
) -> None:
    """Both ways: what the teacher gets, and what comes back of it."""
    straight = _ask(http, direct, recorded)
    sent = openai_teacher.calls[-1]
    gated = _ask(http, through, recorded)
    arrived = openai_teacher.calls[-1]
    assert arrived is not sent
    assert gated == straight
    assert _travelled(arrived) == _travelled(sent)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("surface", ["chat", "responses"])
def test_a_handled_answer_has_the_headers_that_clients_read(
    http: httpx.Client, direct: Route, through: Route, world: World, surface: str, stream: bool
) -> None:
    """What a body is, that a stream is not to be kept, and an id to ask about."""
    form, text = FORMS["json"], world.known["json"]
    body = {**(form.chat(text) if surface == "chat" else form.responses(text)), "stream": stream}
    path = "/chat/completions" if surface == "chat" else "/responses"
    straight, gated = (
        http.post(route.base_url + path, json=body, headers={"x-script": "openai"}) for route in (direct, through)
    )
    assert gated.headers["x-tracer-decision"] == "handled"
    assert handled_headers(gated.headers.multi_items()) == handled_headers(straight.headers.multi_items())


def _travelled(call: Call) -> tuple[object, ...]:
    """All of a request but what belongs to its connection."""
    own = {b"host", b"connection", b"transfer-encoding"} | (set() if call.body else {b"content-length"})
    headers = sorted((name, value) for name, value in call.headers if name not in own)
    return call.method, call.path, call.query, headers, call.body
