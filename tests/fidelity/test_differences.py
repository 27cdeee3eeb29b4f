"""The comparison itself: blind to the written list, and to nothing else."""

import copy
import json
from typing import Any

import pytest

from tests.fidelity.differences import FORWARDED, HANDLED, handled, handled_headers, order
from tests.fidelity.world import FORMS, World
from tests.openai_answers import chat_chunks, chat_completion, response, response_events
from tests.serving import ROOT


def _events(pieces: Any) -> list[dict[str, Any]]:
    return [json.loads(piece[piece.index(b"{") :]) for piece in pieces]


def _whole(world: World, name: str) -> dict[str, Any]:
    form, text = FORMS[name], world.known[name]
    return chat_completion(world.said(form, text), form.chat(text))


def test_what_the_list_allows_is_not_seen(world: World) -> None:
    """Ids with the same prefix, times, the model, numbers of a usage, and the provider's own marks."""
    one, other = _whole(world, "tool"), _whole(world, "tool")
    other |= {"id": "chatcmpl-x", "created": 1, "model": "tracer_surrogate", "system_fingerprint": "fp_x"}
    other["service_tier"] = "flex"
    other["usage"]["prompt_tokens"] = 0
    other["choices"][0]["message"]["tool_calls"][0]["id"] = "call_x"
    assert other != one
    assert handled(other) == handled(one)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("choices", 0, "message", "tool_calls", 0, "function", "name"), "loan"),
        (("choices", 0, "message", "tool_calls", 0, "function", "arguments"), "{ }"),
        (("choices", 0, "message", "content"), ""),
        (("choices", 0, "message", "refusal"), ""),
        (("choices", 0, "finish_reason"), "stop"),
        (("choices", 0, "index"), 1),
        (("choices", 0, "x"), None),
        (("usage", "x"), 0),
        (("usage",), None),
        (("created",), "now"),
        (("model",), None),
        (("id",), "resp_1"),
        (("object",), "completion"),
    ],
)
def test_everything_else_is_seen(world: World, path: tuple[Any, ...], value: Any) -> None:
    """A changed value, a new key, another type."""
    one = _whole(world, "tool")
    other = copy.deepcopy(one)
    *inside, last = path
    place: Any = other
    for step in inside:
        place = place[step]
    place[last] = value
    assert handled(other) != handled(one)


@pytest.mark.parametrize("name", ["text", "json", "constant_tool"])
def test_pieces_of_a_stream_are_joined(world: World, name: str) -> None:
    """However the text, or a call's arguments, are cut; but no event may be missing, or another."""
    form, text = FORMS[name], world.known[name]
    for events in (
        _events(chat_chunks(world.said(form, text), form.chat(text))),
        _events(response_events(world.said(form, text), form.responses(text))),
    ):
        kinds = [event.get("type", "") for event in events]
        at = next(i for i, kind in enumerate(kinds) if kind.endswith(".delta")) if any(kinds) else 1
        finer = [*events[:at], *_cut(events[at]), *events[at + 1 :]]
        assert len(finer) > len(events)
        assert handled(finer) == handled(events)
        assert handled(events[:-1]) != handled(events)
        assert handled([*events[:at], *events[at + 2 :]]) != handled(events)
        assert handled([*events, events[-1]]) != handled(events)


def _cut(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The same delta in two pieces."""
    if "delta" in event:
        return [{**event, "delta": event["delta"][:2]}, {**event, "delta": event["delta"][2:]}]
    first, second = copy.deepcopy(event), copy.deepcopy(event)
    one, other = first["choices"][0]["delta"], second["choices"][0]["delta"]
    if "tool_calls" in one:
        one, other = one["tool_calls"][0]["function"], other["tool_calls"][0]["function"]
    key = "content" if "content" in one else "arguments"
    one[key], other[key] = one[key][:2], other[key][2:]
    return [first, second]


def test_a_response_is_compared_item_by_item(world: World) -> None:
    """Its output, and what it repeats of the request."""
    form, text = FORMS["json"], world.known["json"]
    one = response(world.said(form, text), form.responses(text))
    for key, value in (("store", True), ("text", {"format": {"type": "text"}}), ("output", []), ("temperature", 0.5)):
        assert handled({**one, key: value}) != handled(one), key


def test_repeated_pairs_of_a_helper_are_one() -> None:
    """Chunk and delta, chunk and delta: but a done that came twice is two."""
    assert order(["chunk", "content.delta"] * 3 + ["chunk", "content.done"]) == (
        ["chunk", "content.delta", "chunk", "content.done"]
    )
    assert order(["content.done", "content.done"]) == ["content.done", "content.done"]


def test_headers_are_compared_but_for_the_providers_own() -> None:
    """Content type and cache control are the answer's; request ids only begin alike."""
    teachers = [("content-type", "application/json"), ("x-request-id", "req_1"), ("openai-version", "x")]
    ours = [("content-type", "application/json"), ("x-request-id", "req_2"), ("x-tracer-lane", "surrogate")]
    assert handled_headers(ours) == handled_headers(teachers)
    assert handled_headers(ours[1:]) != handled_headers(teachers)


@pytest.mark.parametrize(("heading", "listed"), [("A forwarded call", FORWARDED), ("A handled call", HANDLED)])
def test_the_list_is_the_one_in_the_docs(heading: str, listed: dict[str, str]) -> None:
    """Word for word, so that it cannot grow unseen."""
    section = (ROOT / "docs" / "fidelity.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert dict(rows[1:]) == listed
