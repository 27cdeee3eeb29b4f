"""What of a call is its prompt, on every surface."""

import json
from typing import Any

import pytest

from gateway.prompts import prompt_of
from gateway.recognise import Recogniser
from gateway.settings import build_settings
from gateway.shapes import Shape, Shapes
from gateway.wire import ModelRequest, parse_chat, parse_decisions, parse_responses
from policies.prompts import Family, Known, Prompt

SYSTEM = {"role": "system", "content": "Sort it."}
USER = {"role": "user", "content": "where is my card?"}
SCHEMA = {"type": "object", "properties": {"intent": {"enum": ["card_lost", "refund"]}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "i", "schema": SCHEMA}}
LOOKUP = {"name": "lookup", "description": "Today is 2026-11-24.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": LOOKUP}


def _chat(*messages: dict[str, Any], **fields: Any) -> Prompt:
    body = {"model": "tracer/bank", "messages": list(messages) or [SYSTEM, USER], **fields}
    return prompt_of(parse_chat(json.dumps(body).encode()), "gpt")


def _responses(**fields: Any) -> Prompt:
    body = {"model": "tracer/bank", "instructions": "Sort it.", "input": "where?", **fields}
    return prompt_of(parse_responses(json.dumps(body).encode()), "gpt")


def _decisions(**question: Any) -> Prompt:
    asked = {"type": "predicate", "name": "angry", "instructions": "Is the customer angry?", **question}
    body = {"model": "tracer/bank", "input": "where?", "questions": [asked]}
    return prompt_of(parse_decisions(json.dumps(body).encode()), "gpt")


@pytest.mark.parametrize(
    "same",
    [
        _chat(SYSTEM, {"role": "user", "content": "other"}),
        _chat(SYSTEM, {**USER, "name": "bob"}),
        _chat(temperature=None, tools=None, response_format=None),
        _chat(seed=7, user="u-1", metadata={"a": "b"}, stream=True, stream_options={"include_usage": True}),
        _chat(max_tokens=10, service_tier="flex", store=False, n=1, logprobs=False, prompt_cache_key="k"),
        _chat({"role": "system", "content": [{"type": "text", "text": "Sort it."}]}, USER),
        _chat({**SYSTEM, "name": None}, USER),
        _responses(),
        _responses(input=[{"role": "user", "content": "hello"}], max_output_tokens=16, reasoning={"effort": None}),
        _responses(text={}, temperature=None),
    ],
)
def test_what_does_not_change_the_answer_is_no_other_prompt(same: Prompt) -> None:
    """The input, who asks, how the answer travels, its limit, a seed; null and absent are the same."""
    assert same == _chat()


@pytest.mark.parametrize(
    "other",
    [
        _chat({"role": "system", "content": "Sort them."}, USER),
        _chat({"role": "developer", "content": "Sort it."}, USER),
        _chat({**SYSTEM, "name": "x"}, USER),
        _chat({"role": "system", "content": "Sort"}, {"role": "system", "content": " it."}, USER),
        _chat(USER),
        _chat(SYSTEM, {"role": "assistant", "content": "ok"}, USER),
        _chat(temperature=1),
        _chat(temperature=0),
        _chat(top_p=0.5),
        _chat(presence_penalty=1),
        _chat(frequency_penalty=1),
        _chat(reasoning_effort="low"),
        _chat(verbosity="low"),
        _chat(response_format={"type": "json_object"}),
        _chat(response_format=FORMAT),
        _chat(tools=[TOOL]),
        _chat(tools=[TOOL], tool_choice="required"),
        _chat(tools=[TOOL], parallel_tool_calls=False),
        _chat(tools=[TOOL, {**TOOL, "function": {**LOOKUP, "name": "book"}}]),
        _chat(stop="x"),
        _chat(invented_tomorrow=1),
        _responses(instructions="Sort them."),
        _responses(reasoning={"effort": "low"}),
        _responses(text={"verbosity": "low"}),
        _responses(text={"format": {"type": "json_object"}}),
        _responses(prompt={"id": "p"}),
        _decisions(),
        _decisions(instructions="Is the customer happy?"),
        _decisions(type="choice", choices=[{"value": "a"}, {"value": "b"}]),
        _decisions(type="choice", choices=[{"value": "a"}, {"value": "c"}]),
    ],
)
def test_what_may_change_the_answer_is_another_prompt(other: Prompt) -> None:
    """Instructions, their roles and borders, tools, schema, sampling, and whatever did not exist yet."""
    everything = [_chat(), _chat(temperature=0.5), _chat(tools=[{**TOOL, "function": {"name": "f"}}]), other]
    family = Family()
    for prompt in everything[:-1]:
        family.learn(prompt)
    assert len({prompt.fingerprint for prompt in everything}) == 4
    assert family.knows(other) is Known.NO


def test_the_model_is_no_part_of_the_frame() -> None:
    """Another model is told apart, and known for what it is."""
    request = parse_chat(json.dumps({"model": "m", "messages": [SYSTEM, USER]}).encode())
    first, second = prompt_of(request, "gpt"), prompt_of(request, "gpt-5")
    assert first.fingerprint != second.fingerprint
    assert (first.frame, first.text) == (second.frame, second.text)
    assert len(first.fingerprint) == len(first.frame) == 16


def test_instructions_of_questions_and_of_chats_vary_alike() -> None:
    """A date in them is no new prompt, on any surface; another choice, or another date among choices, is."""
    family = Family()
    family.learn(_decisions(instructions="It is 2026-11-24. Is the customer angry?"))
    family.learn(_responses(instructions="It is 2026-11-24. Sort it."))
    assert family.knows(_decisions(instructions="It is 2027-01-02. Is the customer angry?")) is Known.YES
    assert family.knows(_responses(instructions="It is 2027-01-02. Sort it.")) is Known.YES
    assert family.knows(_chat({"role": "system", "content": "It is 2027-01-02. Sort it."}, USER)) is Known.YES
    days = [[{"value": "2026-11-24"}, {"value": "2026-11-25"}], [{"value": "2026-11-24"}, {"value": "2026-11-26"}]]
    family.learn(_decisions(type="choice", choices=days[0]))
    assert family.knows(_decisions(type="choice", choices=days[1])) is Known.NO


def test_a_date_in_a_tools_description_is_no_new_prompt() -> None:
    """Anything else in it is."""
    family = Family()
    family.learn(_chat(tools=[TOOL]))
    for said, known in (("Today is 2027-01-02.", Known.YES), ("Today was 2026-11-24.", Known.NO)):
        tool = {**TOOL, "function": {**LOOKUP, "description": said}}
        assert family.knows(_chat(tools=[tool])) is known
    assert _chat(tools=[TOOL]).fingerprint != _chat(tools=[tool]).fingerprint


def test_the_order_of_keys_says_nothing() -> None:
    """Of a tool as of a message."""
    turned = {"function": dict(reversed(LOOKUP.items())), "type": "function"}
    assert _chat(tools=[TOOL]) == _chat(dict(reversed(SYSTEM.items())), USER, tools=[turned])


def test_turns_before_the_input_are_told_apart_from_instructions() -> None:
    """A conversation varies after three; the instructions stay what they are."""

    def call(said: str, rules: str = "Sort it.") -> Prompt:
        return _chat({"role": "system", "content": rules}, {"role": "user", "content": said}, USER)

    family = Family()
    for said in ("hello", "hi", "good morning"):
        family.learn(call(said))
    assert family.knows(call("my card is lost")) is Known.YES
    assert family.knows(call("my card is lost", "Do not sort it.")) is Known.NO


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"m","messages":[{"role":"system","content":"\\ud83d"},{"role":"user","content":"a"}]}',
        b'{"model":"m","messages":[{"role":"\\ud83d","content":"a"},{"role":"user","content":"a"}]}',
        b'{"model":"m","messages":[{"role":"system","content":[3]},{"role":"user","content":"a"}],"seed":1e999}',
        b'{"model":"m","messages":[{"role":"system"},{"role":"user","content":"a"}],"x":%d}' % 10**40,
        b'{"model":"m","messages":[{"role":"user"}],"tools":' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"model":"m","messages":[{"role":"user"}],"tools":' + b"[" * 1020 + b"]" * 1020 + b"}",
    ],
)
def test_a_prompt_can_be_taken_of_any_call(raw: bytes) -> None:
    """Lone surrogates, large numbers, deep nesting: learned, stored and known again."""
    prompt = prompt_of(parse_chat(raw), "gpt\ud83d")
    family = Family()
    family.learn(prompt)
    family.learn(_chat())
    text = json.dumps(family.to_json(), ensure_ascii=False)
    text.encode()
    assert Family.from_json(json.loads(text)).knows(prompt) is Known.YES


def test_calls_of_no_known_form_have_a_prompt() -> None:
    """`/v1/responses` takes more than is read here."""
    for body in ("{}", '{"input":[]}', '{"input":[3],"instructions":["a"]}', '{"input":null,"instructions":3}'):
        assert len(prompt_of(parse_responses(body.encode()), "").fingerprint) == 16
    for body in ("{}", '{"questions":[]}', '{"questions":[3]}', '{"questions":{"a":1}}'):
        assert len(prompt_of(parse_decisions(body.encode()), "").fingerprint) == 16


def test_calls_of_one_shape_share_their_prompt() -> None:
    """It is computed once, and another model's beside it."""
    recogniser = Recogniser(build_settings({"projects": {"bank": {"policy": "none"}}}, {}))

    def body(text: str) -> bytes:
        return json.dumps({"model": "tracer/bank", "messages": [SYSTEM, {**USER, "content": text}]}).encode()

    def read(raw: bytes, named: str | None) -> tuple[ModelRequest, Any]:
        return parse_chat(raw), recogniser.recognise(parse_chat(raw), named)

    shapes = Shapes(read)
    shapes.remember(body("hello"), None, Shape(parse_chat(body("hello")), "bank"), "hello")
    found = [shapes.find(body(text), None) for text in ("a", "b")]
    first, second = [known[0].prompt("gpt") for known in found if known is not None]
    assert first is second
    assert first == _chat()
    assert found[0] is not None
    assert found[0][0].prompt("gpt-5") != first
    assert found[0][0].fingerprint("gpt") == first.fingerprint
