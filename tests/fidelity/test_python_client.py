"""The official Python client sees the same of a gateway as of the teacher, but for a written list."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.fidelity.conftest import Route
from tests.fidelity.differences import handled
from tests.fidelity.ways import WAYS, Way
from tests.fidelity.world import FORMS, STRANGE, Form, World, projects
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings

PAIRS = [(form, way) for form in FORMS.values() for way in WAYS if way.fits(form)]
CASES = [pytest.param(form, way, id=f"{form.name}-{way.name}") for form, way in PAIRS]


@pytest.fixture(scope="module")
def clients(direct: Route, through: Route) -> Iterator[tuple[openai.OpenAI, openai.OpenAI]]:
    """(straight, through the gateway)."""
    with direct.client() as straight, through.client() as gated:
        yield straight, gated


@pytest.mark.parametrize(("form", "way"), CASES)
def test_a_forwarded_answer_is_the_teachers(
    clients: tuple[openai.OpenAI, openai.OpenAI], through: Route, form: Form, way: Way
) -> None:
    """Field by field, with nothing left out."""
    straight, gated = clients
    assert way.ask(gated, form, STRANGE) == way.ask(straight, form, STRANGE)
    assert through.decision == "deferred"


@pytest.mark.parametrize(("form", "way"), CASES)
def test_a_handled_answer_is_what_the_teacher_would_have_said(
    clients: tuple[openai.OpenAI, openai.OpenAI], world: World, through: Route, form: Form, way: Way
) -> None:
    """Field by field, but for the written list."""
    straight, gated = clients
    text = world.known[form.name]
    answer = way.ask(gated, form, text)
    assert through.decision == "handled", through.answers[-1]
    assert handled(answer) == handled(way.ask(straight, form, text))


def test_the_async_client_sees_the_same(direct: Route, through: Route, world: World) -> None:
    """Every form in every way, handled and forwarded, many at a time."""

    async def ask(client: openai.AsyncOpenAI, form: Form, way: Way, text: str) -> dict[str, object]:
        return await way.ask_async(client, form, text)

    async def compare() -> None:
        async with direct.async_client() as straight, through.async_client() as gated:
            for form, way in PAIRS:
                known = world.known[form.name]
                asked = [ask(client, form, way, text) for text in (STRANGE, known) for client in (straight, gated)]
                strange, strange_gated, said, said_gated = await asyncio.gather(*asked)
                assert strange_gated == strange, (form.name, way.name)
                assert handled(said_gated) == handled(said), (form.name, way.name)

    asyncio.run(compare())
    assert {headers.get("x-tracer-decision") for headers in through.answers} >= {"handled", "deferred"}


def test_what_an_llm_writes_is_paid_for(through: Route, openai_teacher: ScriptedTeacher, world: World) -> None:
    """Of a tool that was picked locally: the usage is that of the LLM, which is asked for that one tool."""
    form = FORMS["open_tool"]
    with through.client() as client:
        answer = client.chat.completions.create(**form.chat(world.known[form.name]))
    assert through.answers[-1]["x-tracer-reason"] == "arguments"
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    asked = openai_teacher.calls[-1].json
    assert len(asked["tools"]) == 1
    assert asked["tool_choice"]["function"]["name"] == asked["tools"][0]["function"]["name"]


@pytest.mark.parametrize("script", ["gzip", "deflate", "html", "error", "hang_up", "truncated"])
def test_what_an_llm_writes_may_come_in_any_way(policies: Path, tmp_path: Path, world: World, script: str) -> None:
    """Compressed unasked, or not at all: the application gets a whole answer, or what the full call brings."""
    form = FORMS["open_tool"]
    with ScriptedTeacher(answer_of=world.answer_of, script=script) as teacher:
        settings = make_settings(tmp_path, {"projects": projects(policies)}, upstream=teacher.url)
        with ThreadedGateway(settings) as gateway, httpx.Client() as http:
            asked = form.chat(world.known[form.name])
            straight = http.post(f"{teacher.url}/chat/completions", json=asked) if script != "hang_up" else None
            gated = http.post(f"{gateway.base_url}/chat/completions", json=asked)
    assert gated.status_code == (502 if straight is None else straight.status_code)
    if gated.status_code == 200 and script in ("gzip", "deflate"):
        (choice,) = gated.json()["choices"]
        assert choice["message"]["tool_calls"][0]["function"]["name"] == world.topics[world.known[form.name]]
        assert gated.headers["x-tracer-decision"] == "handled"
