"""Load on a gateway that is stopped, killed, or given a new policy in the middle of it."""

import asyncio
import itertools
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.store import Store
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import GatewayProcess
from tests.traces_maker import make_traces

CALLS = 500
AT_ONCE = 60


@dataclass(frozen=True)
class Answer:
    """What one call came to: `label` and `call_id` where it was answered, neither where the connection failed."""

    text: str
    label: str | None = None
    handled: bool = False
    call_id: str = ""


def _texts(folder: Path) -> tuple[list[str], dict[str, str]]:
    """500 distinct texts, every other one handled by the policy; and the policy's labels of those."""
    policy = Policy.load(folder)
    handled: dict[str, str] = {}
    deferred: list[str] = []
    for trace in make_traces(4_000, seed=7):
        decision = policy.decide(trace.input)
        if decision.label is not None:
            handled[trace.input] = decision.label
        else:
            deferred.append(trace.input)
    half = CALLS // 2
    assert min(len(handled), len(deferred)) >= half
    handled = dict(list(handled.items())[:half])
    return [text for pair in zip(handled, deferred[:half], strict=True) for text in pair], handled


def _configure(folder: Path, policy: Path, teacher: ScriptedTeacher) -> None:
    tree = {
        "upstreams": {"teacher": {"base_url": teacher.url}},
        "default_upstream": "teacher",
        "projects": {"bank": {"policy": str(policy), "teacher": "gpt", "promotion": "immediate", "audit": {"rate": 0}}},
        "server": {"policy_poll_seconds": 0.05},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


@asynccontextmanager
async def _application(port: int, back: asyncio.Event) -> AsyncIterator[Callable[[str], Coroutine[Any, Any, Answer]]]:
    """The official client, without retries, so that each call is told as it went.

    After a connection error it makes no further call in that place before `back` is set, as an application would.
    """
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client:
        places = asyncio.Semaphore(AT_ONCE)

        async def ask(text: str) -> Answer:
            async with places:
                try:
                    raw = await client.chat.completions.with_raw_response.create(
                        model="tracer/bank", messages=[{"role": "user", "content": text}]
                    )
                except openai.APIConnectionError:
                    await back.wait()
                    return Answer(text)
            answer = raw.parse()
            handled = raw.headers["x-tracer-decision"] == "handled"
            return Answer(text, answer.choices[0].message.content, handled, raw.headers["x-tracer-id"])

        yield ask


def _stored(folder: Path) -> dict[str, tuple[str, str]]:
    """id -> (input, label) of every trace in the gateway's store."""
    store = Store.open(f"sqlite:///{folder}/.tracer/traces.db")
    try:
        return {trace.id: (trace.input, trace.teacher) for trace in store.traces("bank")}
    finally:
        store.close()


def _check(answers: list[Answer], handled: dict[str, str]) -> None:
    for answer in answers:
        if answer.label is not None:
            assert answer.handled == (answer.text in handled)
            assert answer.label == handled.get(answer.text, f"label of {answer.text}")


@pytest.fixture
def slow_teacher() -> Iterator[ScriptedTeacher]:
    """A teacher that takes long enough for calls to be in flight."""
    with ScriptedTeacher(label_of=lambda text: f"label of {text}", latency=0.15) as running:
        yield running


def test_a_restart_under_load_loses_nothing(tmp_path: Path, policy_folder: Path, slow_teacher: ScriptedTeacher) -> None:
    """Of 500 calls each gets a right answer or a connection error, and every answered forward is in the store."""
    _configure(tmp_path, policy_folder, slow_teacher)
    texts, handled = _texts(policy_folder)

    async def run(first: GatewayProcess) -> list[Answer]:
        back = asyncio.Event()
        async with _application(first.port, back) as ask:
            tasks = [asyncio.create_task(ask(text)) for text in texts]
            for answered in itertools.islice(asyncio.as_completed(tasks), CALLS // 5):
                await answered
            assert await asyncio.to_thread(first.terminate) == 0
            with GatewayProcess(tmp_path, "--config", "config.yaml", "--port", str(first.port)) as second:
                back.set()
                answers = await asyncio.gather(*tasks)
                assert second.terminate() == 0
            return answers

    with GatewayProcess(tmp_path, "--config", "config.yaml") as first:
        answers = asyncio.run(run(first))
    _check(answers, handled)
    answered = [answer for answer in answers if answer.label is not None]
    assert len(answers) == CALLS
    # A call a place may have been on its way, and another have found nobody.
    assert len(answered) >= CALLS - 2 * AT_ONCE
    stored = _stored(tmp_path)
    forwarded = {answer.call_id: (answer.text, answer.label) for answer in answered if not answer.handled}
    assert forwarded.items() <= stored.items()


def test_kill_9_under_load_keeps_what_was_acknowledged(
    tmp_path: Path, policy_folder: Path, slow_teacher: ScriptedTeacher
) -> None:
    """The store opens whole, with every trace the metrics had counted as stored; a new gateway goes on with it."""
    _configure(tmp_path, policy_folder, slow_teacher)
    texts, handled = _texts(policy_folder)

    async def run(gateway: GatewayProcess) -> tuple[list[Answer], int]:
        gone = asyncio.Event()
        async with _application(gateway.port, gone) as ask, httpx.AsyncClient() as scraper:
            tasks = [asyncio.create_task(ask(text)) for text in texts]
            acknowledged = 0
            while acknowledged < CALLS // 10:
                page = (await scraper.get(f"{gateway.url}/metrics")).text
                line = next(line for line in page.splitlines() if line.startswith("tracer_traces_stored_total"))
                acknowledged = int(float(line.split()[1]))
            gateway.process.kill()
            gone.set()
            return await asyncio.gather(*tasks), acknowledged

    with GatewayProcess(tmp_path, "--config", "config.yaml") as gateway:
        answers, acknowledged = asyncio.run(run(gateway))
    _check(answers, handled)
    with sqlite3.connect(tmp_path / ".tracer" / "traces.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    stored = _stored(tmp_path)
    assert len(stored) >= acknowledged > 0
    assert all(label == f"label of {text}" for text, label in stored.values())
    with GatewayProcess(tmp_path, "--config", "config.yaml") as again:
        deferred = next(text for text in texts if text not in handled)
        body = {"model": "tracer/bank", "messages": [{"role": "user", "content": deferred}]}
        assert httpx.post(f"{again.base_url}/chat/completions", json=body).status_code == 200
        assert again.terminate() == 0
    assert len(_stored(tmp_path)) == len(stored) + 1


def test_a_new_policy_goes_live_under_load_without_a_dropped_call(
    tmp_path: Path, policy_folder: Path, slow_teacher: ScriptedTeacher
) -> None:
    """The version changes between two calls; none of them fails."""
    folder = tmp_path / "policy"
    shutil.copytree(policy_folder, folder)
    _configure(tmp_path, folder, slow_teacher)
    slow_teacher.latency = 0.0
    texts, _ = _texts(policy_folder)

    async def run(gateway: GatewayProcess) -> tuple[list[Answer], str]:
        async with _application(gateway.port, asyncio.Event()) as ask:
            config = FitConfig(target_teacher_agreement=0.85)
            fitting = asyncio.create_task(asyncio.to_thread(fit_policy, make_traces(700, seed=3), folder, config))
            answers: list[Answer] = []
            served = ""
            while not fitting.done() or served != fitting.result().manifest.version:
                answers += await asyncio.gather(*(ask(text) for text in texts[:50]))
                health = await asyncio.to_thread(httpx.get, f"{gateway.url}/health")
                served = health.json()["projects"]["bank"]["policy"]
            return answers, served

    before = Policy.load(folder).version
    with GatewayProcess(tmp_path, "--config", "config.yaml") as gateway:
        answers, served = asyncio.run(run(gateway))
        assert gateway.terminate() == 0
    assert served != before
    assert all(answer.label is not None for answer in answers)
