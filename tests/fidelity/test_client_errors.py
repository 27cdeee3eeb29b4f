"""What an application catches, and the rest of the API through the official Python client."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from tests.fidelity.conftest import Route
from tests.fidelity.ways import Observed, failure, plain
from tests.fidelity.world import FORMS, MODEL, STRANGE

STATUSES = ("400", "401", "403", "404", "409", "422", "429", "500", "503")


def _failed(client: openai.OpenAI, script: str, **more: Any) -> Observed:
    with pytest.raises(openai.APIError) as caught:
        _asked(client, script, **more)
    return failure(caught.value)


def _asked(client: openai.OpenAI, script: str, **more: Any) -> Observed:
    """An answer read to its end."""
    asked = {**FORMS["text"].chat(STRANGE), **more}
    answer = client.chat.completions.create(**asked, extra_headers={"x-script": script})
    return {"events": [plain(chunk) for chunk in answer]} if more.get("stream") else {"result": plain(answer)}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", STATUSES)
def test_errors_are_the_same_exceptions(direct: Route, through: Route, status: str, stream: bool) -> None:
    """Class, status, body, code, parameter, request id and retry-after."""
    with direct.client() as straight, through.client() as gated:
        found = _failed(gated, f"status_{status}", stream=stream)
        assert found == _failed(straight, f"status_{status}", stream=stream)
    assert found["status"] == int(status)
    assert found["request_id"]


@pytest.mark.parametrize("script", ["stream_error", "no_done", "cut_after_done"])
def test_odd_ends_of_a_stream_are_the_same(direct: Route, through: Route, script: str) -> None:
    """An error event is raised, and a stream that merely ends, ends."""
    seen = []
    for route in (direct, through):
        with route.client() as client:
            try:
                seen.append(_asked(client, script, stream=True))
            except openai.APIError as error:
                seen.append(failure(error))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("script", ["cut_stream", "cut_body"])
def test_a_broken_answer_is_broken_for_the_application_too(direct: Route, through: Route, script: str) -> None:
    """It gets the same exception, and never half an answer for a whole one."""
    classes = []
    for route in (direct, through):
        with route.client() as client, pytest.raises((openai.APIError, httpx.HTTPError)) as caught:
            _asked(client, script, stream=script == "cut_stream")
        classes.append(type(caught.value))
    assert classes[0] is classes[1]


def test_no_answer_is_a_502(direct: Route, through: Route) -> None:
    """Where the teacher hangs up without a word the gateway says so: the one exception that has another class."""
    with direct.client() as client, pytest.raises(openai.APIConnectionError):
        _asked(client, "hang_up")
    with through.client() as client, pytest.raises(openai.InternalServerError) as caught:
        _asked(client, "hang_up")
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreachable")


@pytest.mark.parametrize(("script", "calls"), [("flaky", 2), ("status_503", 1)])
def test_the_clients_own_retries_work(direct: Route, through: Route, script: str, calls: int) -> None:
    """It repeats where the teacher lets it, and as soon (retry-after-ms), and not where x-should-retry forbids it."""
    for name, route in (("straight", direct), ("gated", through)):
        before = len(route.answers)
        with route.client(max_retries=2) as client:
            if calls > 1:
                assert _asked(client, script, user=name)["result"]["choices"]
            else:
                with pytest.raises(openai.InternalServerError):
                    _asked(client, script, user=name)
        assert len(route.answers) - before == calls


def test_other_resources_are_the_same(direct: Route, through: Route) -> None:
    """Models, embeddings, moderations, speech, and a file that is uploaded, read and deleted."""

    def use(client: openai.OpenAI) -> list[Any]:
        content = bytes(range(256)) * 300
        file = client.files.create(file=("a b.bin", content), purpose="batch")
        seen = [
            [plain(model) for model in client.models.list()],
            client.models.retrieve(MODEL),
            client.embeddings.create(model="e", input=["a", "b"]),
            client.embeddings.create(model="e", input="a", encoding_format="float", dimensions=16),
            client.moderations.create(input="kill"),
            client.audio.speech.create(model="t", voice="alloy", input="hello").read(),
            file,
            client.files.retrieve(file.id),
            client.files.content(file.id).read() == content,
            client.files.delete(file.id),
        ]
        return [plain(item) for item in seen]

    with direct.client() as straight, through.client() as gated:
        assert use(gated) == use(straight)


def test_other_resources_are_the_same_to_the_async_client(direct: Route, through: Route) -> None:
    """Several at a time, on one connection pool."""

    async def use(route: Route) -> list[Any]:
        async with route.async_client() as client:
            asked = (
                client.models.retrieve(MODEL),
                client.embeddings.create(model="e", input=["a"]),
                client.moderations.create(input="hello"),
                client.files.create(file=("a.bin", b"x" * 100_000), purpose="batch"),
            )
            return [plain(found) for found in await asyncio.gather(*asked)]

    assert asyncio.run(use(through)) == asyncio.run(use(direct))


def test_decisions_are_forwarded_as_they_are(direct: Route, through: Route) -> None:
    """Of no project: every kind of question, as a call that the client has no method for."""
    questions = [
        {"type": "choice", "name": "topic", "instructions": "Which?", "choices": [{"value": "loan"}, {"value": True}]},
        {"type": "predicate", "instructions": "Is it urgent?"},
        {"type": "score", "instructions": "How bad?", "levels": [{"label": "calm"}, {"label": "loan"}]},
    ]
    body = {"model": MODEL, "input": STRANGE, "questions": questions}
    with direct.client() as straight, through.client() as gated:
        found = [client.post("/decisions", cast_to=object, body=body) for client in (straight, gated)]
    assert found[0] == found[1]
