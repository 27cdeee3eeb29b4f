"""What a call costs in the gateway's process, step by step: without sockets, so that a slower line shows.

python bench/hotpath.py [--rounds 30] [--out FILE] [--write-docs] [--save] [--compare [FILE]]

Whole calls are made as the server makes them: handled, alone and 32 together (see gateway/turns.py), streamed,
forwarded (to an upstream in the same process that answers at once, its answer recorded as a trace), and, through a
Starlette app that parses the same body, answered with a constant. Steps are the functions that a call goes through,
alone; a call needs them with colder caches, so they add up to less than it takes. Times are CPU time of the thread,
taken in turns, in blocks of calls; each figure is the least of its blocks, since what else a machine does can only add
to it.

`--compare` holds the whole calls, as multiples of the constant answer, against a saved baseline (`--save` writes it)
and exits with 1 where one has grown by more than two fifths in three measurements: a ratio, with room for noise.
"""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import thread_time_ns
from typing import Any

import uvloop
from starlette.types import ASGIApp, Message, Scope

from bench.bare import COMPLETION, empty
from bench.frontier import write_docs
from bench.stamp import stamp
from gateway.answer import Envelope, render, render_stream
from gateway.app import Gateway, create_app
from gateway.asgi import ON_LEAVE, tracer_headers
from gateway.attempts import Guarded
from gateway.control import read_control
from gateway.prompts import prompt_of
from gateway.reading import read_answer
from gateway.services import Services
from gateway.settings import build_settings
from gateway.shapes import Shape, Shapes
from gateway.upstream import Origin, UpstreamAnswer, UpstreamCall
from gateway.wanted import misfit
from gateway.wire import Surface, parse_chat
from policies.api import fit
from policies.settings import FitConfig

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / "bench" / "results" / "hotpath.json"
DOCS = ROOT / "docs" / "architecture.md"
ROOM = 1.4
"""By how much a call may grow, as a multiple of the constant answer, before it counts as slower."""
EMPTY, SEEN = "constant answer", "handled, text seen before"
_CALLS, _STEPS = 100, 500  # in a block
_MORE_TRIES = 2
_PROJECT = "bench"
_PLACES = ("home", "work", "school", "office", "shop", "bank", "cinema", "hotel", "garden", "kitchen")
_VERBS = ("refund", "cancel", "deliver", "repair", "replace", "confirm", "book", "change", "explain", "return")
_PROMPT = "Say in one word what the customer wants done. The words are:\n" + "\n".join(
    f"- {verb}: the customer wants us to {verb} something, whatever else is mentioned beside it" for verb in _VERBS * 2
)
# Those of the official Python client.
_HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"OpenAI/Python 3.57.0"),
    (b"x-stainless-lang", b"python"),
    (b"x-stainless-package-version", b"3.57.0"),
    (b"x-stainless-os", b"Linux"),
    (b"x-stainless-arch", b"x64"),
    (b"x-stainless-runtime", b"CPython"),
    (b"x-stainless-runtime-version", b"3.11.7"),
    (b"authorization", b"Bearer sk-the-clients-own"),
    (b"x-stainless-async", b"false"),
    (b"x-stainless-retry-count", b"0"),
    (b"x-stainless-read-timeout", b"600"),
]


def main() -> None:
    """Measure, print the tables, save or compare."""
    asked = parse(sys.argv[1:])
    found = measured(asked.rounds)
    where = stamp()
    text = f"{table(found)}\n\n{where['cpu']}, Python {where['python']}, commit {(where['commit'] or '?')[:12]}"
    print(text)
    if asked.write_docs:
        write_docs(DOCS, "bench/hotpath.py", text)
    result = json.dumps({"stamp": where, "rounds": asked.rounds, **found}, indent=2) + "\n"
    for path in filter(None, (asked.out, BASELINE if asked.save else None)):
        path.write_text(result, encoding="utf-8")
    if asked.compare is not None:
        slower = compare(json.loads(asked.compare.read_text(encoding="utf-8")), found, asked.rounds)
        print("\n" + ("\n".join(slower) or f"No call has grown by more than {ROOM - 1:.0%}."))
        sys.exit(bool(slower))


def measured(rounds: int) -> dict[str, Any]:
    """What `measure` gives, with a policy fitted for it."""
    with tempfile.TemporaryDirectory(prefix="tracer-hotpath-") as folder:
        return uvloop.run(measure(Path(folder), rounds))


def compare(before: Mapping[str, Any], found: Mapping[str, Any], rounds: int) -> list[str]:
    """What has grown, in each of a few measurements: a busy machine can add to one, and takes nothing away."""
    slower = grown(before, found)
    for _ in range(_MORE_TRIES):
        if slower:
            slower = grown(before, measured(rounds))
    return slower


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/architecture.md")
    parser.add_argument("--save", action="store_true", help="make the figures the baseline")
    parser.add_argument("--compare", type=Path, nargs="?", const=BASELINE, help="with this baseline")
    asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        parser.error("--rounds is at least 1")
    return asked


def grown(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each whole call that costs more, as a multiple of the constant answer, than there is room for."""
    return [
        f"{name}: {ratio:.1f} times the {EMPTY}, {before['of_empty'][name]:.1f} before"
        for name, ratio in now["of_empty"].items()
        if name in before["of_empty"] and ratio > before["of_empty"][name] * ROOM
    ]


def table(found: Mapping[str, Any]) -> str:
    """Markdown: whole calls, then steps."""
    lines = ["| whole call | us | times the constant answer |", "|---|---|---|"]
    lines += [f"| {name} | {us:.1f} | {found['of_empty'][name]:.1f} |" for name, us in found["calls_us"].items()]
    lines += ["", "| step | us |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {us:.2f} |" for name, us in found["steps_us"].items())])


async def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Microseconds of each whole call and of each step, and the whole calls as multiples of the constant answer."""
    texts = _make_policy(folder)
    gateway = create_app(build_settings(_settings(folder), {}), {})
    services: Services = gateway.state.services
    # In the place of the HTTP client, behind everything else that a forwarded call goes through.
    for route in services.upstreams.values():
        guarded: Guarded = route._upstream  # type: ignore[attr-defined]
        guarded._upstream = _Here()
    async with gateway.router.lifespan_context(gateway):
        known = [text for text in texts if _handles(services, text)][:200]
        if not known:
            raise RuntimeError("the policy handles nothing: nothing can be measured")
        handled, streamed = [_body(text) for text in known], [_body(text, stream=True) for text in known]
        forget = services.registry.serving(_PROJECT).decided.clear
        calls = {
            EMPTY: caller(empty, handled, b"chat.completion"),
            SEEN: taker(gateway, handled, b"tracer_surrogate"),
            "handled, new text": taker(gateway, handled, b"tracer_surrogate", before=forget),
            "handled, new texts, 32 together": taker(gateway, handled, b"tracer_surrogate", 32, forget),
            "handled, streamed, new text": taker(gateway, streamed, b"data: [DONE]", before=forget),
            "forwarded and recorded": caller(gateway, [_body(text, model="gpt") for text in known], COMPLETION),
        }
        steps = make_steps(services, known)
        blocks: dict[str, list[float]] = {name: [] for name in (*calls, *steps)}
        for _ in range(rounds + 1):
            for name, call in calls.items():
                if name == SEEN:
                    await _calls(call, len(handled))
                blocks[name].append(await _calls(call))
            for name, step in steps.items():
                blocks[name].append(_steps(step))
    # The first round imports, fills caches and lets the interpreter adapt.
    least = {name: min(times[1:]) for name, times in blocks.items()}
    return {
        "calls_us": {name: round(least[name], 2) for name in calls},
        "of_empty": {name: round(least[name] / least[EMPTY], 2) for name in calls},
        "steps_us": {name: round(least[name], 2) for name in steps},
    }


def make_steps(services: Services, texts: Sequence[str]) -> dict[str, Callable[[], object]]:
    """What a handled call goes through, and what one of a new shape, a streamed and a forwarded one do beside."""
    recogniser, policy = services.recogniser, services.registry.serving(_PROJECT).policy
    if policy is None:
        raise RuntimeError("there is no policy")
    cycled = itertools.cycle(texts)
    body = _body(texts[0])
    request = parse_chat(body)
    found = recogniser.recognise(request, None)
    if found is None or found.text is None:
        raise RuntimeError("the call is not recognised")
    shape = Shape(request, _PROJECT)
    shapes = Shapes(lambda raw, named: (read := parse_chat(raw), recogniser.recognise(read, named)))
    shapes.remember(body, None, shape, found.text)
    serving = services.registry.serving(_PROJECT)
    decision = services.decider.decide_here(serving, found.text)
    reply, envelope = policy.answers[decision.label or ""], Envelope("0" * 32, policy.version)
    given = dict(_HEADERS)
    scope: Scope = {"headers": _HEADERS}
    counter, clock = services.metrics.requests.labels(_PROJECT, "surrogate", ""), services.metrics.decision_seconds

    def count() -> None:
        counter.inc()
        clock.observe(1e-4)

    answer_headers = [(b"content-type", b"application/json")]
    return {
        "headers: who asks, and what for": lambda: (services.access.enter(scope), read_control(_HEADERS, given)),
        "body of a known shape": lambda: (shapes.find(body, None), recogniser.flaw(texts[0])),
        "decision: tokens, graph, thresholds": lambda: policy.decide(next(cycled)),
        "answer: fits what is asked for": lambda: misfit(reply, shape.wanted),
        "answer: body": lambda: render(reply, envelope),
        "answer: headers": lambda: tracer_headers(_PROJECT, decision, envelope.call_id),
        "metrics: one count, one time": count,
        "(streamed) answer: events": lambda: render_stream(reply, envelope, include_usage=True),
        "(new shape) body": lambda: recogniser.recognise(parse_chat(body), None),
        "(new shape) prompt fingerprint": lambda: prompt_of(request, "gpt").fingerprint,
        "(forwarded) answer read for the trace": lambda: read_answer(Surface.CHAT, answer_headers, COMPLETION),
    }


def caller(app: ASGIApp, bodies: Sequence[bytes], expected: bytes) -> Callable[[], Awaitable[int]]:
    """One call of `app` as the server makes it, the next body each time; raises where the answer lacks `expected`."""
    turns: Iterator[bytes] = itertools.cycle(bodies)

    async def call() -> int:
        body, sent = next(turns), []
        waiting = [body]

        async def receive() -> Message:
            if not waiting:
                await asyncio.get_running_loop().create_future()  # a client that waits for its answer
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message.get("body", b""))

        await app(_scope(body), receive, send)
        _check(b"".join(sent), expected)
        return 1

    return call


def taker(
    gateway: Gateway, bodies: Sequence[bytes], expected: bytes, together: int = 1, before: Callable[[], object] = int
) -> Callable[[], Awaitable[int]]:
    """So many calls `together` that take their turns, `before` having been called; raises as `caller` does."""
    bodies_ = itertools.cycle(bodies)

    async def call() -> int:
        before()
        turns = []
        for body in itertools.islice(bodies_, together):
            turn = gateway.begin(_scope(body), body)
            if turn is None:
                raise RuntimeError("the call takes a task")
            turns.append(turn)
        for turn in turns:
            turn.decide()
        for turn in turns:
            _, _, content = turn.answer() or (0, [], b"")
            _check(content, expected)
        return together

    return call


def _scope(body: bytes) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50_000),
        "scheme": "http",
        "root_path": "",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [*_HEADERS, (b"content-length", b"%d" % len(body))],
        "state": {},
        ON_LEAVE: _stays,
    }


def _check(answer: bytes, expected: bytes) -> None:
    if expected not in answer:
        raise RuntimeError(f"not the answer that was to be measured: {answer[:300]!r}")


def _stays(_: Callable[[], None] | None) -> bool:
    return True


async def _calls(call: Callable[[], Awaitable[int]], at_least: int = _CALLS) -> float:
    started, number = thread_time_ns(), 0
    while number < at_least:
        number += await call()
    return (thread_time_ns() - started) / number / 1e3


def _steps(step: Callable[[], object]) -> float:
    started = thread_time_ns()
    for _ in range(_STEPS):
        step()
    return (thread_time_ns() - started) / _STEPS / 1e3


class _Here:
    """An upstream in this process, which answers at once."""

    name = "here"
    training_allowed = True

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def send(self, _: UpstreamCall) -> UpstreamAnswer:
        return _Answer()


class _Answer:
    status = 200

    def __init__(self) -> None:
        self.headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(COMPLETION))]
        self.origin = Origin("here")
        self._rest = COMPLETION

    def at_hand(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest

    async def read(self) -> bytes:
        return self.at_hand()

    async def close(self) -> None:
        pass


def _make_policy(folder: Path) -> list[str]:
    """Fit a policy on made-up traces; texts of their kind."""
    texts = [
        f"could you {verb} what I ordered {when} for my {place} {tail}"
        for verb in _VERBS
        for place in _PLACES
        for when in ("yesterday", "last week", "in May")
        for tail in ("please", "", "today", "at once")
    ]
    lines = [json.dumps({"input": text, "teacher": next(verb for verb in _VERBS if verb in text)}) for text in texts]
    (folder / "traces.jsonl").write_text("\n".join(lines), encoding="utf-8")
    fit(folder / "traces.jsonl", artifact_dir=folder / "policy", config=FitConfig(target_teacher_agreement=0.9))
    return texts[:: len(texts) // 300]


def _handles(services: Services, text: str) -> bool:
    return services.decider.decide_here(services.registry.serving(_PROJECT), text).label is not None


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "store": {"url": f"sqlite:///{folder}/traces.db", "spool": f"{folder}/spool.jsonl"},
        "upstreams": {"here": {"base_url": "http://127.0.0.1:9/v1"}},
        "default_upstream": "here",
        "projects": {
            _PROJECT: {"policy": f"{folder}/policy", "teacher": "gpt", "promotion": "immediate"},
            "new": {"policy": f"{folder}/none", "match": {"system_prompt": _PROMPT}},
        },
    }


def _body(text: str, **fields: Any) -> bytes:
    messages = [{"role": "system", "content": _PROMPT}, {"role": "user", "content": text}]
    asked = {"messages": messages, "model": f"tracer/{_PROJECT}", "temperature": 0, "max_tokens": 20, **fields}
    return json.dumps(asked, separators=(",", ":")).encode()


if __name__ == "__main__":
    main()
