"""Every body that the gateway makes up is one of OpenAI's, key by key."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from tests.fidelity.conftest import Route
from tests.fidelity.schema import DECISION, Error, violations
from tests.fidelity.world import FORMS, MODEL, STRANGE, World
from tests.traces_maker import LABELS

FORM_NAMES = list(FORMS)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """A client that takes what comes."""
    with httpx.Client(timeout=30) as client:
        yield client


def _post(http: httpx.Client, route: Route, path: str, body: Any) -> httpx.Response:
    answer = http.post(route.base_url + path, json=body, headers={"x-script": "openai"})
    assert answer.status_code == 200, answer.text
    return answer


def _events(answer: httpx.Response) -> tuple[list[tuple[str | None, Any]], str]:
    """(event name, data) of every event, and what stands last in the stream."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    *blocks, end = answer.text.split("\n\n")
    assert end == ""
    found = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        if fields["data"] != "[DONE]":
            found.append((fields.get("event"), json.loads(fields["data"])))
    return found, blocks[-1]


def _asked(world: World, name: str, surface: str) -> dict[str, Any]:
    form = FORMS[name]
    text = world.known[name]
    return form.chat(text) if surface == "chat" else form.responses(text)


@pytest.mark.parametrize("name", FORM_NAMES)
@pytest.mark.parametrize("who", ["gateway", "teacher"])
def test_a_chat_completion(
    http: httpx.Client, through: Route, direct: Route, world: World, name: str, who: str
) -> None:
    """Whole; the scripted teacher's own are held to the same."""
    route = through if who == "gateway" else direct
    answer = _post(http, route, "/chat/completions", _asked(world, name, "chat"))
    assert answer.headers.get("x-tracer-decision") == ("handled" if who == "gateway" else None)
    assert violations(answer.json(), ChatCompletion) == []


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("name", FORM_NAMES)
@pytest.mark.parametrize("who", ["gateway", "teacher"])
def test_its_chunks(
    http: httpx.Client, through: Route, direct: Route, world: World, name: str, who: str, usage: bool
) -> None:
    """Streamed, every chunk with the same id, and [DONE] at the end."""
    route = through if who == "gateway" else direct
    asked = {**_asked(world, name, "chat"), "stream": True, "stream_options": {"include_usage": usage}}
    events, end = _events(_post(http, route, "/chat/completions", asked))
    assert end == "data: [DONE]"
    for kind, event in events:
        assert kind is None
        assert violations(event, ChatCompletionChunk) == []
        assert ("usage" in event) is usage
    assert len({event["id"] for _, event in events}) == 1


@pytest.mark.parametrize("name", FORM_NAMES)
@pytest.mark.parametrize("who", ["gateway", "teacher"])
def test_a_response(http: httpx.Client, through: Route, direct: Route, world: World, name: str, who: str) -> None:
    """Of `/v1/responses`, whole."""
    route = through if who == "gateway" else direct
    answer = _post(http, route, "/responses", _asked(world, name, "responses"))
    assert answer.headers.get("x-tracer-decision") == ("handled" if who == "gateway" else None)
    assert violations(answer.json(), Response) == []


@pytest.mark.parametrize("name", FORM_NAMES)
@pytest.mark.parametrize("who", ["gateway", "teacher"])
def test_its_events(http: httpx.Client, through: Route, direct: Route, world: World, name: str, who: str) -> None:
    """Streamed: each event under its name, the last one complete, and no [DONE]."""
    route = through if who == "gateway" else direct
    events, _ = _events(_post(http, route, "/responses", {**_asked(world, name, "responses"), "stream": True}))
    for kind, event in events:
        assert kind == event["type"]
        assert violations(event, ResponseStreamEvent) == []
    assert events[-1][0] == "response.completed"
    (item,) = [event["item"] for kind, event in events if kind == "response.output_item.done"]
    assert events[-1][1]["response"]["output"] == [item]


def test_a_decision(http: httpx.Client, through: Route, direct: Route, world: World) -> None:
    """Of a choice question whose values the policy knows: the teacher's choice, with probabilities that sum to 1."""
    choices = [{"value": label, "description": f"It is about {label}."} for label in LABELS]
    question = {"type": "choice", "name": "topic", "instructions": FORMS["text"].prompt, "choices": choices}
    body = {"model": MODEL, "input": world.known["text"], "questions": [question]}
    answers = [_post(http, route, "/decisions", body) for route in (through, direct)]
    assert answers[0].headers["x-tracer-decision"] == "handled"
    for answer in answers:
        assert violations(answer.json(), DECISION) == []
    (ours,), (teachers,) = (answer.json()["answers"] for answer in answers)
    assert ours.keys() == teachers.keys()
    assert (ours["choice"], ours["name"]) == (teachers["choice"], "topic")
    shares = {row["value"]: row["probability"] for row in ours["probabilities"]}
    assert list(shares) == LABELS
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    assert ours["confidence"] == shares[ours["choice"]] == max(shares.values())


_NOBODYS = {"model": "tracer/x", "messages": [{"role": "user", "content": "hi"}]}
_LOCAL = {"x-tracer-mode": "local"}
ERRORS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "no JSON": (400, "POST", "/v1/chat/completions", {"content": b"{"}),
    "no object": (400, "POST", "/v1/responses", {"json": []}),
    "no messages": (400, "POST", "/v1/chat/completions", {"json": {"model": MODEL}}),
    "a mode of ours": (400, "POST", "/v1/responses", {"json": {}, "headers": {"x-tracer-mode": "fast"}}),
    "no such project": (
        404,
        "POST",
        "/v1/chat/completions",
        {"json": _NOBODYS},
    ),
    "no such path": (404, "GET", "/nothing", {}),
    "no such method": (405, "GET", "/predict", {}),
    "compressed": (415, "POST", "/text/classify", {"content": b"", "headers": {"content-encoding": "gzip"}}),
    "kept local": (
        422,
        "POST",
        "/v1/chat/completions",
        {"json": FORMS["text"].chat(STRANGE), "headers": _LOCAL},
    ),
    "no answer": (502, "POST", "/v1/responses", {"json": {}, "headers": {"x-script": "hang_up"}}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error(http: httpx.Client, through: Route, name: str) -> None:
    """Ours have OpenAI's shape, and a header that tells them from the teacher's."""
    status, method, path, more = ERRORS[name]
    answer = http.request(method, through.base_url.removesuffix("/v1") + path, **more)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert "x-tracer-lane" in answer.headers
    assert violations(answer.json(), Error) == []
    assert answer.json()["error"]["code"]


def test_the_check_sees_what_is_wrong(http: httpx.Client, direct: Route, world: World) -> None:
    """A missing key, one too many, a wrong type and a wrong word: each is one fault."""
    body = _post(http, direct, "/chat/completions", _asked(world, "tool", "chat")).json()
    choice = body["choices"][0]
    for damaged, expected in (
        ({**body, "x": 1}, "$: ChatCompletion has no 'x'"),
        ({key: value for key, value in body.items() if key != "id"}, "$: ChatCompletion needs 'id'"),
        ({**body, "created": "now"}, "$.created: 'now' in place of a int"),
        ({**body, "created": True}, "$.created: True in place of a int"),
        ({**body, "choices": [{**choice, "finish_reason": "end"}]}, "$.choices[0].finish_reason: 'end' is none of"),
        ({**body, "choices": [{**choice, "message": {"role": "assistant", "content": None}}]}, "needs 'refusal'"),
    ):
        (fault,) = violations(damaged, ChatCompletion)
        assert expected in fault
