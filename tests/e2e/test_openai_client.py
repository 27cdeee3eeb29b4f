"""The official client, sync, async and streaming, before a real gateway process and a real teacher."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import yaml

from tests.scripted_teacher import ScriptedTeacher
from tests.serving import GatewayProcess


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedTeacher]:
    """One teacher for the module."""
    with ScriptedTeacher(label_of=lambda text: f"label of {text}") as teacher:
        yield teacher


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, policy_folder: Path, scripted: ScriptedTeacher
) -> Iterator[GatewayProcess]:
    """One gateway process for the module."""
    folder = tmp_path_factory.mktemp("openai")
    tree = {
        "upstreams": {"teacher": {"base_url": scripted.url}},
        "default_upstream": "teacher",
        "projects": {
            "bank": {
                "policy": str(policy_folder),
                "teacher": "gpt-teacher",
                "promotion": "immediate",
                "audit": {"rate": 0},
            }
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    with GatewayProcess(folder, "--config", "config.yaml") as running:
        yield running


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    """The only change an application makes is the base URL."""
    with openai.OpenAI(base_url=gateway.base_url, api_key="sk-client", max_retries=0) as opened:
        yield opened


def test_an_application_changes_its_base_url_and_nothing_else(
    client: openai.OpenAI, scripted: ScriptedTeacher, handled_text: str, deferred_text: str
) -> None:
    """Handled and deferred answers are the same type with the same fields filled."""
    answers = {}
    for text in (handled_text, deferred_text):
        raw = client.chat.completions.with_raw_response.create(
            model="tracer/bank",
            messages=[{"role": "system", "content": "Sort."}, {"role": "user", "content": text}],
            temperature=0,
            max_tokens=64,
        )
        answers[raw.headers["x-tracer-decision"]] = raw.parse()
    handled, deferred = answers["handled"], answers["deferred"]
    assert handled.model == "tracer_surrogate"
    assert deferred.model == "gpt-teacher"
    assert deferred.choices[0].message.content == f"label of {deferred_text}"
    for answer in (handled, deferred):
        assert answer.choices[0].message.content
        assert (answer.object, answer.choices[0].finish_reason) == ("chat.completion", "stop")
        assert answer.usage is not None
        assert answer.choices[0].message.role == "assistant"
    assert scripted.calls[-1].header("authorization") == "Bearer sk-client"


def test_a_stream_reads_the_same_whoever_answers(client: openai.OpenAI, handled_text: str, deferred_text: str) -> None:
    """Role first, then text, then a finish reason."""
    for text in (handled_text, deferred_text):
        stream = client.chat.completions.create(
            model="tracer/bank", messages=[{"role": "user", "content": text}], stream=True
        )
        chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stream_has_usage_where_asked_for(client: openai.OpenAI, handled_text: str) -> None:
    """As OpenAI sends it: a last chunk without choices."""
    stream = client.chat.completions.create(
        model="tracer/bank",
        messages=[{"role": "user", "content": handled_text}],
        stream=True,
        stream_options={"include_usage": True},
    )
    last = list(stream)[-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 0


def test_the_async_client_makes_many_calls_at_once(
    gateway: GatewayProcess, handled_text: str, deferred_text: str
) -> None:
    """Half of them handled, and each gets its own answer."""

    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="k", max_retries=0) as client:

            async def ask(number: int) -> str | None:
                text = handled_text if number % 2 else f"{deferred_text} {'qx' * number}"
                answer = await client.chat.completions.create(
                    model="tracer/bank", messages=[{"role": "user", "content": text}]
                )
                return answer.choices[0].message.content

            return await asyncio.gather(*(ask(number) for number in range(40)))

    answers = asyncio.run(ask_all())
    assert answers[::2] == [f"label of {deferred_text} {'qx' * number}" for number in range(0, 40, 2)]
    assert len(set(answers[1::2])) == 1


def test_errors_raise_what_the_application_expects(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    """The client's own exception classes, from us or from the teacher."""
    question: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError, match="Configured projects: bank"):
        client.chat.completions.create(model="tracer/nobody", messages=question)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="gpt", messages=[])
    assert refused.value.param == "messages"
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(model="gpt", messages=question, extra_headers={"x-script": "rate_limited"})
    assert limited.value.response.headers["retry-after"] == "7"
    assert limited.value.code == "rate_limit_exceeded"
    with pytest.raises(openai.InternalServerError) as unreachable:
        client.chat.completions.create(model="gpt", messages=question, extra_headers={"x-script": "hang_up"})
    assert (unreachable.value.status_code, unreachable.value.code) == (502, "upstream_unreachable")
    assert gateway.process.poll() is None


def test_other_resources_of_the_client_are_relayed(client: openai.OpenAI, scripted: ScriptedTeacher) -> None:
    """Whatever lies under /v1: here an upload, as multipart."""
    content = bytes(range(256)) * 50
    client.files.with_raw_response.create(file=("a.bin", content), purpose="batch")
    assert scripted.calls[-1].path == "/v1/files"
    assert content in scripted.calls[-1].body
