"""The application: sends messages through the official `openai` client and notes how each was answered.

Shared by the demo and by `bench/flywheel.py`.
"""

import asyncio
import http.client
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import openai
import orjson
from openai.types.chat import ChatCompletionMessageParam

from gateway.demo.costs import Usage
from gateway.demo.workload import Message

CALL_SECONDS = 60.0
# The time httpx's pool takes for a call grows with the calls in flight: an application under load has several.
CALLS_A_CLIENT = 8


@dataclass(frozen=True, slots=True)
class Application:
    """What the application sends with every message."""

    base_url: str
    model: str
    system_prompt: str
    concurrency: int = 64

    def prompt(self, text: str) -> list[ChatCompletionMessageParam]:
        """The messages of one call."""
        return [{"role": "system", "content": self.system_prompt}, {"role": "user", "content": text}]


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the application saw it. `label` is the answer's text, None where the call failed with `error`."""

    message: Message
    seconds: float
    label: str | None = None
    lane: str = ""
    usage: Usage = field(default_factory=Usage)
    error: str | None = None

    @property
    def handled(self) -> bool:
        """Answered by the gateway itself."""
        return self.lane == "surrogate"

    @property
    def forwarded(self) -> bool:
        """Answered by the teacher."""
        return not self.handled and self.error is None

    @property
    def agrees(self) -> bool:
        """The answer is what the teacher says."""
        return self.label == self.message.label


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call in full: what went over the wire."""

    request: str
    status: int
    headers: tuple[tuple[str, str], ...]
    answer: str


def drive(application: Application, messages: Sequence[Message], on_call: Callable[[Call], None]) -> list[Call]:
    """Send the messages in order, `application.concurrency` at a time; the calls in the same order."""
    return asyncio.run(_drive(application, messages, on_call))


def bare_seconds(application: Application, messages: Sequence[Message]) -> list[float]:
    """The time of the same calls over one open socket, without the client library. Raises OSError or HTTPException."""
    url = urlsplit(application.base_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=CALL_SECONDS)
    seconds = []
    try:
        for message in messages:
            # To the parameter: another prompt is the teacher's.
            asked = {"model": application.model, "messages": application.prompt(message.text), "temperature": 0}
            body = orjson.dumps(asked)
            started = time.perf_counter()
            connection.request("POST", f"{url.path}/chat/completions", body, {"content-type": "application/json"})
            connection.getresponse().read()
            seconds.append(time.perf_counter() - started)
    finally:
        connection.close()
    return seconds


def exchange(application: Application, text: str) -> Exchange:
    """One call and everything that came back. Raises openai.APIError."""
    return asyncio.run(_exchange(application, text))


async def _drive(application: Application, messages: Sequence[Message], on_call: Callable[[Call], None]) -> list[Call]:
    calls: list[Call | None] = [None] * len(messages)
    waiting = iter(enumerate(messages))

    async def work(client: openai.AsyncOpenAI) -> None:
        for place, message in waiting:
            calls[place] = call = await _call(client, application, message)
            on_call(call)

    async with AsyncExitStack() as opened, asyncio.TaskGroup() as group:
        for place in range(application.concurrency):
            if place % CALLS_A_CLIENT == 0:
                client = await opened.enter_async_context(_client(application))
            group.create_task(work(client))
    return [call for call in calls if call is not None]


async def _call(client: openai.AsyncOpenAI, application: Application, message: Message) -> Call:
    started = time.perf_counter()
    try:
        answer = await client.chat.completions.with_raw_response.create(
            model=application.model, messages=application.prompt(message.text), temperature=0
        )
        completion = answer.parse()
    except openai.APIError as error:
        return Call(message, time.perf_counter() - started, error=str(error))
    seconds = time.perf_counter() - started
    usage = completion.usage
    return Call(
        message,
        seconds,
        label=completion.choices[0].message.content,
        lane=answer.headers.get("x-tracer-lane", ""),
        usage=Usage(usage.prompt_tokens, usage.completion_tokens) if usage else Usage(),
    )


async def _exchange(application: Application, text: str) -> Exchange:
    async with _client(application) as client:
        answer = await client.chat.completions.with_raw_response.create(
            model=application.model, messages=application.prompt(text), temperature=0
        )
        response = answer.http_response
        return Exchange(
            request=answer.http_request.content.decode(),
            status=answer.status_code,
            headers=tuple(response.headers.multi_items()),
            answer=response.text,
        )


def _client(application: Application) -> openai.AsyncOpenAI:
    # A proxy from the environment has no business between two loopback sockets.
    transport = openai.DefaultAsyncHttpxClient(trust_env=False)
    return openai.AsyncOpenAI(
        base_url=application.base_url,
        api_key="not-needed",
        max_retries=0,
        timeout=CALL_SECONDS,
        http_client=transport,
    )
